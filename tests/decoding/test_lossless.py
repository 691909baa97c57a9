"""Every schedule, with any draft, gives the tokens that the target alone would write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd

SCHEDULES = ("parallel", "sequential")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("which", ["draft", "foreign_draft"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_ragged_batch_equals_plain_decoding(
    decode, prompts, plain, schedule, which, threshold, request
):
    out = decode(request.getfixturevalue(which), prompts, 40, schedule, threshold)
    assert out.tokens == plain
    assert out.finish_reasons == ["length"] * len(prompts)


def test_attention_by_the_kernel_writes_the_same(decode, draft, prompts, plain):
    """From a cache that grows, in a batch that is ragged, with a layer that has a window."""
    assert decode(draft, prompts, 40, "parallel", attention="pallas").tokens == plain


def test_plain_decoding_equals_the_whole_sequence_forward(target, prompts, plain):
    # The oracle has no cache, no loop and no ragged batch.
    model = fd.models.target.TargetModel(target.config)
    forward = jax.jit(lambda tokens: model.apply({"params": target.params}, tokens))
    for prompt, written in zip(prompts, plain, strict=True):
        sequence = np.array([prompt + written + [0] * (56 - len(prompt) - len(written))])
        greedy = np.asarray(forward(sequence))[0].argmax(-1)
        start = len(prompt) - 1
        assert greedy[start : start + len(written)].tolist() == written


def test_schedules_agree_in_acceptance_and_verify_lengths(decode, draft, prompts):
    parallel = decode(draft, prompts, 40, "parallel", threshold=0.01)
    sequential = decode(draft, prompts, 40, "sequential", threshold=0.01)
    assert parallel == sequential
    lengths = [a for row in parallel.acceptance_lengths for a in row]
    assert min(lengths) == 1 and max(lengths) > 1  # the draft is sometimes wrong, sometimes right
    assert len({v for row in parallel.verify_lengths for v in row}) > 1


@pytest.mark.parametrize("schedule", ["ar", *SCHEDULES])
def test_a_row_does_not_depend_on_its_neighbours(decode, draft, prompts, schedule):
    together = decode(draft, prompts, 40, schedule)
    for row in (0, 1, 4):
        alone = decode(draft, [prompts[row]] * len(prompts), 40, schedule)
        for field in dataclasses.fields(fd.GenerateOutput):
            assert getattr(alone, field.name)[3] == getattr(together, field.name)[row]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_batch_of_one_equals_its_row(decode, draft, prompts, schedule):
    together = decode(draft, prompts, 40, schedule)
    alone = decode(draft, prompts[1:2], 40, schedule)
    assert alone.tokens == together.tokens[1:2]
    assert alone.acceptance_lengths == together.acceptance_lengths[1:2]


@pytest.mark.parametrize("schedule", ["ar", *SCHEDULES])
def test_budgets_per_row(decode, draft, prompts, plain, schedule):
    budgets = [0, 1, 2, 3, 40, 7, 0, 1]
    out = decode(draft, prompts, budgets, schedule)
    assert out.tokens == [row[:k] for row, k in zip(plain, budgets, strict=True)]
    assert out.finish_reasons == ["length"] * len(prompts)
    assert [len(steps) for steps in out.acceptance_lengths[:2]] == [0, 0]  # prefill is no step


@pytest.mark.parametrize("schedule", ["ar", *SCHEDULES])
def test_stop_at_every_place(decode, draft, prompts, plain, schedule):
    """Each of a row's tokens in turn is the stop token, the first emitted one among them."""
    row = 4
    for stop in sorted(set(plain[row][:24])):
        out = decode(draft, prompts, 40, schedule, stops=[stop])
        for written, tokens, reason in zip(plain, out.tokens, out.finish_reasons, strict=True):
            end = written.index(stop) + 1 if stop in written else len(written)
            assert tokens == written[:end]
            assert reason == ("stop" if stop in written else "length")


def test_stop_token_on_the_last_token_of_the_budget(decode, draft, prompts, plain):
    place = next(i for i, t in enumerate(plain[4]) if i > 2 and t not in plain[4][:i])
    stop = plain[4][place]
    at, before = (
        decode(draft, prompts, [k] * 8, "parallel", stops=[stop]) for k in (place + 1, place)
    )
    assert at.finish_reasons[4] == "stop" and at.tokens[4] == plain[4][: place + 1]
    assert before.finish_reasons[4] == "length" and before.tokens[4] == plain[4][:place]


def test_lists_are_not_cut_at_the_end(decode, draft, prompts):
    out = decode(draft, prompts, 40, "parallel")
    for tokens, steps in zip(out.tokens, out.acceptance_lengths, strict=True):
        emitted = 1 + sum(steps)
        assert emitted >= len(tokens) > emitted - steps[-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("correct", [0.0, 1.0, 0.7])
def test_any_candidates_and_verify_lengths(begin, draft, prompts, plain, schedule, correct):
    """Candidates come from an oracle that is always wrong, always right or often right.

    The verify lengths are random too, 0 among them. After each step the acceptance must be what
    the oracle's mistakes say, whatever the step's static size.
    """
    rng = np.random.default_rng(int(10 * correct))
    decoding = begin(draft, prompts, 40, schedule)
    rows, n = decoding.state.block.tokens.shape
    longer = decode_longer(begin, prompts)
    while bool(decoding.state.active.any()):
        emitted = np.asarray(decoding.state.num_emitted)
        active = np.asarray(decoding.state.active)
        truth = np.array([longer[r][emitted[r] : emitted[r] + n - 1] for r in range(rows)])
        right = rng.random(truth.shape) < correct
        drafts = np.where(right, truth, (truth + 1) % 61)
        verify = rng.integers(0, n, rows)
        tokens = np.concatenate([np.asarray(decoding.state.block.tokens)[:, :1], drafts], axis=1)
        block = dataclasses.replace(
            decoding.state.block,
            tokens=jnp.asarray(tokens, jnp.int32),
            verify_length=jnp.asarray(verify, jnp.int32),
        )
        decoding.state = dataclasses.replace(decoding.state, block=block)
        decoding.advance(1)
        expected = [int(np.cumprod(right[r, : verify[r]]).sum()) + 1 for r in range(rows)]
        out = decoding.output()
        for row in np.flatnonzero(active):
            assert out.acceptance_lengths[row][-1] == expected[row]
            assert out.verify_lengths[row][-1] == verify[row]
    assert decoding.output().tokens == plain


def decode_longer(begin, prompts) -> list[list[int]]:
    """Plain decoding a few tokens further than the tests look, for the oracle's last block."""
    decoding = begin(None, prompts, 47, "ar")
    decoding.advance(10_000)
    return decoding.output().tokens


@pytest.mark.parametrize("block_size", [2, 3, 8])
def test_other_block_sizes_than_the_trained_one(decode, draft, prompts, plain, block_size):
    out = decode(draft, prompts, 40, "sequential", 0.0, block_size=block_size)
    assert out.tokens == plain
    assert {v for row in out.verify_lengths for v in row} == {block_size - 1}


def test_a_row_that_fills_the_cache_to_its_last_slot(begin, foreign_draft, prompts):
    """prompt 16 + budget 45 + n 5 - 2 = 64 slots; without acceptance the last block ends in 63."""
    decoding = begin(foreign_draft, [prompts[1]] * 8, 45, "parallel", 0.0)
    num_slots = decoding.num_slots
    last = 0
    while bool(decoding.state.active.any()):
        last = int(decoding.state.length[decoding.state.active].max())
        decoding.advance(1)
    assert last + 5 == num_slots == decoding.num_slots
    out = decoding.output()
    assert out.tokens[0] == decode_longer(begin, prompts)[1][:45]
    assert out.finish_reasons[0] == "length"


@pytest.mark.parametrize("schedule", ["ar", *SCHEDULES])
def test_logits_that_are_nan_are_an_error_and_no_token(decode, target, draft, prompts, schedule):
    # Finite weights, so loading can't see it.
    scale = target.params["final_norm"]["scale"]
    loud = {**target.params, "final_norm": {"scale": jnp.full_like(scale, 3e38)}}
    with pytest.raises(FloatingPointError, match="row 0: .* from token 0"):
        decode(draft, prompts, 40, schedule, using=dataclasses.replace(target, params=loud))
