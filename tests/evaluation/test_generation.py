"""One prompt, live."""

import dataclasses

import pytest

import flexdraft_jax as fd
from flexdraft_jax.data.chat import ASSISTANT_TOKEN, USER_TOKEN, build_byte_tokenizer
from flexdraft_jax.evaluation.generation import (
    GenerationSettings,
    answer_live,
    compare_with_plain,
    encode_prompt,
)
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.text import Origin, Piece

SETTINGS = GenerationSettings(max_new_tokens=24)


def test_pieces_make_the_text_that_generate_gives(models) -> None:
    prompt = encode_prompt(models, "hello")
    pieces: list[Piece] = []
    answer = answer_live(models, prompt, SETTINGS, pieces.append)
    out = fd.generate(
        models.target,
        models.draft,
        [prompt],
        max_new_tokens=24,
        schedule="sequential",
        confidence_threshold=0.0,
        stop_token_ids=models.target.eos_token_ids,
    )
    assert answer.output.tokens == out.tokens
    assert answer.seconds > 0
    text = models.tokenizer.decode(out.tokens[0], skip_special_tokens=True)
    shown = "".join(piece.text for piece in pieces)
    assert text.startswith(shown) and len(text) - len(shown) <= 3
    assert pieces[0].step == 0 and pieces[0].origin is Origin.TARGET
    assert str(len(out.tokens[0])) in answer.describe()


def test_every_setting_reaches_the_decoder(models) -> None:
    random = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    settings = dataclasses.replace(SETTINGS, schedule="sequential", sampling="rejection", **random)
    prompt = encode_prompt(models, "hello")
    answer = answer_live(models, prompt, settings, lambda piece: None)
    out = fd.generate(
        models.target,
        models.draft,
        [prompt],
        max_new_tokens=24,
        schedule="sequential",
        confidence_threshold=0.0,
        stop_token_ids=models.target.eos_token_ids,
        sampling="rejection",
        **random,
    )
    assert answer.output.tokens == out.tokens


def test_comparison_says_whether_both_are_equal(models) -> None:
    table = compare_with_plain(models, encode_prompt(models, "hello"), SETTINGS, repeats=1)
    assert table.title.endswith("token for token: yes")
    assert [row[0] for row in table.rows] == ["plain decoding", "flex"]


def test_prompts_are_turns_unless_raw(models) -> None:
    turn = models.tokenizer.decode(encode_prompt(models, "hi"))
    assert turn == f"{USER_TOKEN}hi{ASSISTANT_TOKEN}"
    assert encode_prompt(models, "hi", raw=True) == [ord("h"), ord("i")]


@pytest.mark.parametrize("raw", [False, True])
def test_empty_prompts_are_refused(models, raw: bool) -> None:
    with pytest.raises(ValueError, match="prompt"):
        encode_prompt(models, "", raw=raw)


def test_a_tokenizer_without_a_template_asks_for_raw(models) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = None
    plain = Models(models.target, None, tokenizer, "plain")
    with pytest.raises(ValueError, match="plain has no chat template: give the prompt raw"):
        encode_prompt(plain, "hi")
