"""At temperature > 0 the coupled rule gives the tokens of plain decoding with the same seed."""

import dataclasses

import jax.numpy as jnp
import pytest

SCHEDULES = ("parallel", "sequential")

# Greedy rows beside random ones, and every filter alone and together with others.
SETTINGS = {
    "temperature": [0.0, 1.0, 0.7, 1.5, 0.3, 1.0, 2.0, 1.0],
    "top_k": [0, 0, 5, 0, 0, 3, 0, 1],
    "top_p": [1.0, 1.0, 1.0, 0.9, 0.5, 0.8, 0.05, 1.0],
    "min_p": [0.0, 0.0, 0.0, 0.0, 0.1, 0.05, 0.0, 0.0],
    "seed": [1, 1, 1, 2, 3, 2**32 - 1, 5, 6],
}


@pytest.fixture(scope="module")
def drawn(decode, prompts):
    """What the target alone writes, 40 tokens a row."""
    return decode(None, prompts, 40, "ar", **SETTINGS).tokens


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("which", ["draft", "foreign_draft"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_coupled_equals_plain_decoding(decode, prompts, drawn, schedule, which, threshold, request):
    draft = request.getfixturevalue(which)
    out = decode(draft, prompts, 40, schedule, threshold, **SETTINGS)
    assert out.tokens == drawn


def test_rows_differ_by_seed_and_row_id_and_by_nothing_else(decode, prompts, drawn, plain):
    assert drawn[0] == plain[0] and drawn[7] == plain[7]  # temperature 0, and top_k 1
    assert drawn[1] != plain[1]
    rows = [prompts[1]] * 8
    ids = [1, 1, 2, 1, 1, 1, 1, 1]
    seeds = [1, 1, 1, 7, 1, 1, 1, 1]
    out = decode(None, rows, 40, "ar", temperature=1.0, seed=seeds, row_ids=ids).tokens
    assert out[0] == out[1] == out[4] == drawn[1]
    assert len({tuple(row) for row in out[:4]}) == 3


def test_rejection_is_repeatable_and_leaves_greedy_rows_alone(decode, draft, prompts, plain):
    runs = [
        decode(draft, prompts, 40, schedule, 0.0, sampling="rejection", **SETTINGS)
        for schedule in SCHEDULES
    ]
    assert runs[0] == runs[1]
    assert runs[0].tokens[0] == plain[0] and runs[0].tokens[7] == plain[7]


def test_without_drafts_both_rules_are_plain_decoding(decode, prompts, drawn):
    assert decode(None, prompts, 40, "ar", sampling="rejection", **SETTINGS).tokens == drawn


@pytest.mark.parametrize("sampling", ["coupled", "rejection"])
def test_logits_that_are_nan_are_an_error_and_no_token(decode, target, draft, prompts, sampling):
    scale = target.params["final_norm"]["scale"]
    loud = {**target.params, "final_norm": {"scale": jnp.full_like(scale, 3e38)}}
    using = dataclasses.replace(target, params=loud)
    with pytest.raises(FloatingPointError, match="row 0: .* from token 0"):
        decode(draft, prompts, 40, "sequential", 0.0, using=using, sampling=sampling, **SETTINGS)
