"""Hugging Face's own decoding of the same weights gives the same tokens."""

import dataclasses
import json

import jax
import pytest

import flexdraft_jax as fd
from flexdraft_jax.evaluation.peers import HuggingFace

pytest.importorskip("torch", reason="compares with live Hugging Face models")

PROMPTS = [[1, 2, 3, 1, 2], [40, 50, 60, 70, 80, 90, 100], [7]]
NUM_TOKENS = 48


@pytest.fixture(scope="module")
def plain(models) -> list[list[int]]:
    return fd.generate(models.target, None, PROMPTS, NUM_TOKENS, "ar").tokens


@pytest.fixture(scope="module")
def stop(plain) -> int:
    """A token that ends every row at a place of its own."""
    ends = {t: {row.index(t) for row in plain if t in row} for t in plain[0]}
    return next(t for t, places in ends.items() if len(places) == len(PROMPTS))


@pytest.fixture(scope="module")
def peer(models, stop, tmp_path_factory) -> HuggingFace:
    """Its directory names a stop token and a penalty that nobody asked for."""
    directory = tmp_path_factory.mktemp("target")
    fd.save_target(models.target, directory)
    unasked = {"eos_token_id": stop, "repetition_penalty": 2.0}
    (directory / "generation_config.json").write_text(json.dumps(unasked))
    return HuggingFace(directory)


def test_rows_of_any_length_are_decoded_together(peer, plain, stop) -> None:
    assert peer.generate(PROMPTS, NUM_TOKENS, num_threads=1) == plain
    stopped = [row[: row.index(stop) + 1] for row in plain]
    assert peer.generate(PROMPTS, NUM_TOKENS, 1, stop_token_ids=(stop,)) == stopped


def test_prompt_lookup_gives_the_same_tokens_in_fewer_passes(
    peer, plain, stop, monkeypatch
) -> None:
    passes = []
    forward = peer._model.forward
    monkeypatch.setattr(
        peer._model, "forward", lambda *args, **kw: passes.append(1) or forward(*args, **kw)
    )
    for prompt, row in zip(PROMPTS, plain, strict=True):
        passes.clear()
        assert peer.generate([prompt], NUM_TOKENS, 1, prompt_lookup=10) == [row]
        assert len(passes) < NUM_TOKENS
        stopped = [row[: row.index(stop) + 1]]
        options = {"prompt_lookup": 10, "stop_token_ids": (stop,)}
        assert peer.generate([prompt], NUM_TOKENS, 1, **options) == stopped


def test_assisted_generation_gives_the_same_tokens_in_fewer_passes(
    peer, plain, models, tmp_path, monkeypatch
) -> None:
    """By the model itself, whose drafts are all right."""
    fd.save_target(models.target, tmp_path / "assistant")
    assisted = HuggingFace(tmp_path / "assistant", tmp_path / "assistant")
    assert assisted.assistant == "assistant"
    passes = []
    forward = assisted._model.forward
    monkeypatch.setattr(
        assisted._model, "forward", lambda *args, **kw: passes.append(1) or forward(*args, **kw)
    )
    assert assisted.generate(PROMPTS[:1], NUM_TOKENS, 1, assisted=True) == plain[:1]
    assert len(passes) < NUM_TOKENS
    with pytest.raises(ValueError, match="assisted=True: there is no assistant"):
        peer.generate(PROMPTS[:1], 4, 1, assisted=True)


def test_assistants_that_cannot_help_are_refused(models, tmp_path) -> None:
    fd.save_target(models.target, tmp_path / "target")
    with pytest.raises(ValueError, match="assistant=.*nowhere"):
        HuggingFace(tmp_path / "target", tmp_path / "nowhere")
    config = dataclasses.replace(models.target.config, vocab_size=264)
    fd.save_target(fd.init_target(config, jax.random.key(0)), tmp_path / "other")
    with pytest.raises(ValueError, match="must have the target's vocabulary of 260 .* has 264"):
        HuggingFace(tmp_path / "target", tmp_path / "other")


def test_random_tokens_are_the_same_in_every_call(peer, plain) -> None:
    drawn = [peer.generate(PROMPTS, 8, 1, temperature=1.0) for _ in range(2)]
    assert drawn[0] == drawn[1] != [row[:8] for row in plain]


def test_prompt_lookup_is_for_one_row(peer) -> None:
    with pytest.raises(ValueError, match="batch_size = 1"):
        peer.generate(PROMPTS, 4, 1, prompt_lookup=10)


def test_the_faster_number_of_threads_is_taken(peer, monkeypatch) -> None:
    monkeypatch.setattr(peer, "_default_threads", 4)
    tried = []

    def clock(action) -> float:
        action()
        return seconds[tried[-1]]

    monkeypatch.setattr("flexdraft_jax.evaluation.peers.seconds", clock)
    monkeypatch.setattr(peer, "generate", lambda *args, **kw: tried.append(args[2]))
    seconds = {4: 1.0, 1: 2.0}
    assert peer.fastest_threads(PROMPTS) == 4
    seconds = {4: 2.0, 1: 1.0}
    assert peer.fastest_threads(PROMPTS) == 1
