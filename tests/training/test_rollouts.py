"""Responses that the target writes: what they are, and how their writing resumes."""

import dataclasses
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import flexdraft_jax as fd
from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.models.target import Target
from flexdraft_jax.training import rollouts
from flexdraft_jax.training.config import RolloutConfig

_CONFIG = RolloutConfig(rollouts=6, domains=("word_problems",), max_new_tokens=8, chunk_size=4)


@pytest.fixture(scope="module")
def written(
    target_run: tuple[Target, Path],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[EncodedTurn]:
    directory = tmp_path_factory.mktemp("rollouts")
    return rollouts.write_rollouts(target_run[0], tokenizer, _CONFIG, directory)


def test_responses_are_plain_decoding(
    written: list[EncodedTurn], target_run: tuple[Target, Path]
) -> None:
    target, _ = target_run
    assert len(written) == 6
    for turn in written[::3]:
        prompt = turn.prompt_tokens
        out = fd.generate(
            target,
            None,
            [prompt],
            max_new_tokens=8,
            schedule="ar",
            stop_token_ids=target.eos_token_ids,
        )
        assert turn.tokens == prompt + out.tokens[0]
        assert turn.response_mask == [False] * len(prompt) + [True] * len(out.tokens[0])


def test_writing_resumes_at_the_first_missing_chunk(
    written: list[EncodedTurn],
    target_run: tuple[Target, Path],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, _ = target_run
    answer, calls = rollouts.answer_prompts, []

    def answer_once(*args: object, **kwargs: object) -> object:
        calls.append(len(args[3]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(*args, **kwargs)

    monkeypatch.setattr(rollouts, "answer_prompts", answer_once)
    with pytest.raises(KeyboardInterrupt):
        rollouts.write_rollouts(target, tokenizer, _CONFIG, tmp_path)
    finished: list[int] = []
    resumed = rollouts.write_rollouts(target, tokenizer, _CONFIG, tmp_path, finished.append)
    assert calls == [4, 2, 2]  # The first chunk was not written again.
    assert finished == [4, 2]
    assert resumed == written


def test_domains_take_turns_and_share_evenly() -> None:
    config = dataclasses.replace(_CONFIG, rollouts=11, domains=("word_problems", "code"))
    chunks = list(rollouts._chunks(config))
    assert [(chunk.domain, chunk.start, chunk.count) for chunk in chunks] == [
        ("word_problems", 0, 4),
        ("code", 0, 4),
        ("word_problems", 4, 2),
        ("code", 4, 1),
    ]


def test_fingerprint_sees_one_changed_weight(target_run: tuple[Target, Path]) -> None:
    target, _ = target_run
    params = dict(target.params)
    scale = params["final_norm"]["scale"]
    params["final_norm"] = {"scale": scale.at[3].add(1e-3)}
    changed = dataclasses.replace(target, params=params)
    same = dataclasses.replace(target, params=dict(target.params))
    assert rollouts.target_fingerprint(changed) != rollouts.target_fingerprint(target)
    assert rollouts.target_fingerprint(same) == rollouts.target_fingerprint(target)
