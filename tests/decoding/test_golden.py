"""What the authors' own code put out for two tiny trained pairs (see tests/golden/README.md)."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes
from flexdraft_jax.models.flexdraft import flexdraft_model, flexdraft_variables
from flexdraft_jax.models.target import TargetModel

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = ("bytes-h64", "bpe-h96")
SCHEDULES = ("parallel", "sequential")
SIZES = Sizes(prompt=48, slots=144, max_slots=256)


def load_cases() -> list[dict]:
    return [
        case for pair in PAIRS for case in json.loads((GOLDEN / f"cases_{pair}.json").read_text())
    ]


CASES = load_cases()


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[fd.Target, fd.Draft]]:
    loaded = {}
    for name in PAIRS:
        target = fd.load_target(GOLDEN / name / "target")
        loaded[name] = target, fd.load_draft(GOLDEN / name / "draft", target)
    return loaded


def decode(pair, cases: list[dict], schedule: str, variants: str) -> fd.GenerateOutput:
    """A batch of cases of one block size and strategy; the rest is each row's own.

    `variants` is "one" to compile a step for n - 1 drafts alone, or "several" for what `start`
    chooses. It decides nothing but the time that compilation takes.
    """
    requests = [
        Request(
            tuple(case["prompt_ids"]),
            case["max_new_tokens"],
            case["draft_confidence_threshold"],
            tuple(case["stop_token_ids"] or ()),
        )
        for case in cases
    ]
    decoding = start(
        *pair, requests, schedule, cases[0]["block_size"], cases[0]["pruning_strategy"], SIZES
    )
    if variants == "one":
        largest = decoding.program.variants[-1:]
        decoding.program = dataclasses.replace(decoding.program, variants=largest)
    decoding.advance(10_000)
    return decoding.output()


def check(case: dict, out: fd.GenerateOutput, row: int) -> None:
    assert out.tokens[row] == case["new_ids"]
    assert case["prompt_ids"] + out.tokens[row] == case["output_ids"]
    # The authors' code runs one more step when the last bonus token already ended the row.
    steps = len(out.acceptance_lengths[row])
    assert steps in (len(case["acceptance_lengths"]) - 1, len(case["acceptance_lengths"]))
    assert out.acceptance_lengths[row] == case["acceptance_lengths"][:steps]
    assert out.verify_lengths[row] == [g - 1 for g in case["num_groups_history"][:steps]]


def test_there_are_37_cases():
    assert len(CASES) == 37


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "case", CASES, ids=[f"{c['pair']}-{c['tag']}-{i}" for i, c in enumerate(CASES)]
)
def test_row_by_row(pairs, case, schedule):
    out = decode(pairs[case["pair"]], [case], schedule, "one")
    check(case, out, 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strategy", ["cumulative_product", "min_confidence"])
@pytest.mark.parametrize("pair", PAIRS)
def test_many_prompts_in_one_ragged_batch(pairs, pair, strategy, schedule):
    """All of a pair's cases that share a program, each with its own threshold and stop tokens."""
    cases = [
        case
        for case in CASES
        if (case["pair"], case["pruning_strategy"], case["block_size"]) == (pair, strategy, 8)
    ]
    assert len({len(case["prompt_ids"]) for case in cases}) > 2
    out = decode(pairs[pair], cases, schedule, "several")
    for row, case in enumerate(cases):
        check(case, out, row)


@pytest.mark.parametrize("kind", ["unpruned", "pruned"])
@pytest.mark.parametrize("pair", PAIRS)
def test_intermediate_tensors(pairs, pair, kind):
    """One prefill and one parallel step, tensor by tensor."""
    target, draft = pairs[pair]
    golden = dict(np.load(GOLDEN / f"tensors_{pair}_{kind}.npz"))
    model, variables = flexdraft_model(target, draft), flexdraft_variables(target, draft)
    n, prompt = int(golden["block_size"]), golden["prompt_ids"]

    def close(actual, name):
        np.testing.assert_allclose(actual, golden[name], atol=1e-4, err_msg=name)

    groups = int(golden["step1_num_groups"])

    @functools.partial(jax.jit, static_argnums=0)
    def apply(method, *args):
        return model.apply(variables, *args, method=method)

    @jax.jit
    def step_pass(tokens, length, cache):
        args = tokens, length, groups, n, cache
        return model.apply(variables, *args, method="parallel_pass")

    @jax.jit
    def forward(tokens):
        whole = TargetModel(target.config)
        return whole.apply({"params": target.params}, tokens, capture_intermediates=True)

    logits, layers = forward(prompt[None])
    close(logits[0], "prefill_clean_logits")
    split = target.config.num_layers - draft.config.num_draft_layers
    entering = layers["intermediates"][f"layers_{split - 1}"]["__call__"][0][0]
    close(entering[0], "hidden_at_split")

    request = Request(tuple(prompt.tolist()), 8, float(golden["threshold"]))
    decoding = start(target, draft, [request], "parallel", n, str(golden["strategy"]), SIZES)
    state = decoding.state
    for layer in range(target.config.num_layers):
        cached = state.cache.layer(layer)
        np.testing.assert_allclose(
            cached.keys[0, :, : len(prompt)], golden["cache_keys"][layer], atol=1e-4
        )
        np.testing.assert_allclose(
            cached.values[0, :, : len(prompt)], golden["cache_values"][layer], atol=1e-4
        )
    hidden, block = state.block.hidden[0], state.block.tokens[0]
    np.testing.assert_array_equal(block, golden["prefill_block"])
    close(apply("target_logits", hidden), "prefill_mask_logits_before_bias")
    after = apply("draft_logits", hidden[1:], jnp.broadcast_to(block[0], (n - 1,)))
    np.testing.assert_allclose(after, golden["prefill_mask_logits_after_bias"][1:], atol=1e-4)

    assert int(state.block.verify_length[0]) == groups - 1
    passed = step_pass(state.block.tokens, state.length, state.cache)
    candidates = apply("target_logits", passed.clean.hidden[0])
    np.testing.assert_allclose(candidates, golden["step1_candidate_logits"], atol=1e-4)
    close(apply("target_logits", passed.groups[0]), "step1_group_logits_before_bias")

    decoding.advance(1)
    state = decoding.state
    assert int(state.acceptance_lengths[0, 0]) == int(golden["step1_accepted"]) + 1
    assert int(state.length[0]) == int(golden["step1_cache_len_after_crop"])
    assert int(state.block.tokens[0, 0]) == int(golden["step1_bonus"])
    assert int(golden["step1_group_used"]) == int(golden["step1_accepted"])
    np.testing.assert_array_equal(state.block.tokens[0], golden["step1_next_block"])
    bonus = jnp.broadcast_to(state.block.tokens[0, 0], (n - 1,))
    close(
        apply("draft_logits", state.block.hidden[0, 1:], bonus),
        "step1_next_draft_logits_after_bias",
    )
