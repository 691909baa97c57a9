"""Flex: the policy earns the most it can, and whatever it chooses, the tokens are the same."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding import flex
from flexdraft_jax.decoding.costs import Profile, StepCosts, Variant
from flexdraft_jax.decoding.flex import (
    FlexCosts,
    choose_variant,
    empty_history,
    note_block,
    note_verdict,
)
from flexdraft_jax.decoding.loop import run

VARIANTS = (
    Variant("ar", 0),
    Variant("sequential", 0),
    Variant("sequential", 3),
    Variant("parallel", 4),
)
DRAFTS = [variant.drafts for variant in VARIANTS]


@functools.partial(jax.jit, static_argnames="variants")
def choose(flex_costs, history, survival, remaining, variants=VARIANTS):
    return choose_variant(variants, flex_costs, history, survival, remaining)


def chosen(costs, usual, now, *, remaining=10, refilled=True, **history) -> int:
    """Index of the choice, for rows with these usual curves and these blocks, [B, n - 1] each.

    Unless `history` says otherwise, a million blocks were seen, and confidence has proved right as
    often.
    """
    usual, now = np.atleast_2d(usual).astype(np.float32), np.atleast_2d(now).astype(np.float32)
    rows, drafts = usual.shape
    history = dict.fromkeys(("rejected", "foretold", "blocks"), np.full(rows, 1e6)) | history
    known = dataclasses.replace(
        empty_history(rows, drafts + 1),
        survival=jnp.asarray(usual * np.reshape(history["blocks"], (rows, 1)), jnp.float32),
        **{name: jnp.asarray(value, jnp.float32) for name, value in history.items()},
    )
    flex_costs = FlexCosts(jnp.asarray(costs, jnp.float32), jnp.asarray(refilled))
    remaining = jnp.broadcast_to(jnp.asarray(remaining), rows)
    return int(choose(flex_costs, known, jnp.asarray(now), remaining))


def best_rate(costs, tokens) -> float:
    """Most tokens per millisecond of all cycles through the states "block" and "no block".

    Args:
        costs: of each variant.
        tokens: of each variant where there is a block; 1 where there is none.
    """
    once = [1 / costs[i] for i in range(len(costs)) if not DRAFTS[i]]  # Never a block.
    once += [tokens[i] / costs[i] for i in range(len(costs)) if DRAFTS[i]]  # Always a block.
    turns = [
        (1 + tokens[j]) / (costs[i] + costs[j])  # A block every second step.
        for i, j in itertools.product(range(len(costs)), repeat=2)
        if DRAFTS[i] and not DRAFTS[j]
    ]
    return max(once + turns)


def rate_of_policy(costs, curve, tokens, block: bool) -> float:
    """Tokens per millisecond of what flex chooses, in the long run, with a first block or none."""
    earned, spent = 0.0, 0.0
    choices = {b: chosen(costs, curve, curve if b else np.zeros(4)) for b in (False, True)}
    for step in range(104):
        choice = choices[block]
        if step >= 4:  # Behind the way into the cycle, which has one or two steps.
            earned += tokens[choice] if block else 1.0
            spent += costs[choice]
        block = DRAFTS[choice]
    return earned / spent


@pytest.fixture
def without_looks(monkeypatch):
    """Nobody looks whether drafting has come to pay, as if it never changed."""
    monkeypatch.setattr(flex, "_LOOKING", 0.0)
    choose.clear_cache()
    yield
    choose.clear_cache()


def test_no_sequence_of_steps_earns_more(without_looks):
    """Against all cycles, where every block is as good as the one before."""
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        curve = np.cumprod(rng.beta(4, 1, 4))
        plain, draft = 1.0, rng.exponential(1.0)
        verify = plain * (1 + rng.exponential(0.6) * np.array([3, 4]) / 4)
        costs = [plain, plain + draft, verify[0] + draft, verify[1] + draft * rng.uniform(0.3, 2)]
        tokens = [1, 1, 1 + curve[:3].sum(), 1 + curve.sum()]
        # ("ar", 0) drops a block that is there: it verifies nothing.
        for block in (False, True):
            rate = rate_of_policy(costs, curve, tokens, block)
            assert rate == pytest.approx(best_rate(costs, tokens), rel=1e-4)
        kinds.add(chosen(costs, curve, curve))
    assert kinds == {0, 2, 3}


def test_dearer_drafting_leads_to_plain_decoding_and_stays_there():
    curve = [0.9, 0.8, 0.6, 0.5]
    drafting = []
    for draft in np.geomspace(0.05, 50, 40):
        costs = [1.0, 1 + draft, 1.6 + draft, 1.8 + draft]
        drafting.append(DRAFTS[chosen(costs, curve, curve)])
        drafting.append(DRAFTS[chosen(costs, curve, np.zeros(4))])
    assert drafting[0] and drafting[1] and not drafting[-1]
    for first in (0, 1):  # With a block, and without one.
        choices = drafting[first::2]
        assert choices == sorted(choices, reverse=True)


def test_more_confidence_verifies_more():
    costs = [1.0, 1.5, 1.9, 2.2]
    usual = [0.9, 0.8, 0.7, 0.6]
    lengths = [
        VARIANTS[chosen(costs, usual, np.cumprod([c] * 4))].num_drafts
        for c in np.linspace(0.02, 0.999, 30)
    ]
    assert lengths == sorted(lengths)
    assert set(lengths) == {0, 3, 4}


def test_only_ratios_of_costs_count():
    rng = np.random.default_rng(1)
    for _ in range(50):
        costs = rng.exponential(1.0, 4) + [0, 1, 1, 1]
        curve, now = np.cumprod(rng.beta(4, 1, (2, 4)), axis=1)
        assert chosen(costs, curve, now) == chosen(1e-3 * costs, curve, now)


def test_no_block_is_worth_more_than_the_answer_has_room_for():
    costs, sure = [1.0, 2.0, 3.2, 4.2], np.ones(4)  # Five tokens for 4.2 plain steps.

    def least_room(block) -> int:
        """Tokens that have to be left for a draft; it is made wherever more are."""
        drafts = [
            DRAFTS[chosen(costs, sure, block, remaining=count, refilled=False)]
            for count in range(1, 12)
        ]
        assert drafts == sorted(drafts)
        return 1 + drafts.index(True)

    # Four tokens are more than a step of three drafts costs, and than a block and that step.
    assert least_room(sure) == 4
    assert least_room(np.zeros(4)) == 5
    # What a row has no room for, its next request may have.
    assert DRAFTS[chosen(costs, sure, np.zeros(4), remaining=1)]


def test_rows_are_weighed_together_and_finished_ones_not_at_all():
    costs = [1.0, 1.5, 2.0, 2.4]
    good, bad = [0.99, 0.98, 0.97, 0.96], [0.1, 0.01, 0.0, 0.0]
    assert DRAFTS[chosen(costs, [good, good], [good, good])]
    assert not DRAFTS[chosen(costs, [bad, bad], [bad, bad])]
    assert not DRAFTS[chosen(costs, [bad, good], [bad, good], remaining=[10, 0])]
    assert DRAFTS[chosen(costs, [bad, good], [bad, good], remaining=[0, 10])]
    assert DRAFTS[chosen(costs, [bad, good, good], [bad, good, good])]


def test_confidence_counts_for_what_became_of_it():
    """Rejections, for each that was foretold, are the power of a block's survival curve."""
    costs, usual, now = [1.0, 1.5, 1.9, 2.2], [0.9, 0.8, 0.7, 0.6], [0.8, 0.6, 0.4, 0.2]

    def verified(rejected, rows=1) -> int:
        history = {"rejected": rejected, "foretold": np.full(rows, 1e6)}
        return VARIANTS[chosen(costs, [usual] * rows, [now] * rows, **history)].num_drafts

    lengths = [verified([1e6 * ratio]) for ratio in np.geomspace(0.1, 10, 20)]
    assert lengths == sorted(lengths, reverse=True) and set(lengths) == {0, 3, 4}
    # One row's bad luck is not the draft's fault.
    assert verified([5e5] + [0.0] * 4, rows=5) == verified([1e5] * 5, rows=5) == 4
    assert verified([1e7] * 5, rows=5) == 0


def test_a_draft_that_is_sure_and_wrong_is_soon_left_alone():
    costs, sure = jnp.array([1.0, 1.9, 2.8, 3.9]), jnp.ones((1, 4))
    flex_costs = FlexCosts(costs, jnp.asarray(True))
    history, steps = note_block(empty_history(1, 5), sure), 0
    while DRAFTS[choose(flex_costs, history, sure, jnp.array([99]))]:
        history = note_block(note_verdict(history, sure, jnp.array([4]), jnp.array([0])), sure)
        steps += 1
    assert 1 <= steps <= 12
    # It is left for good, but for a look now and then; kept promises win it back.
    assert not DRAFTS[chosen(costs, sure, sure, accepted=[0.0], promised=[100.0])]
    assert DRAFTS[chosen(costs, sure, sure, accepted=[100.0], promised=[100.0])]


def test_drafting_is_tried_again_after_a_while():
    def tries(idle, look=3.0, cost=3.5, remaining=256, **history) -> bool:
        """Whether a draft is made, at 3.4 tokens of a step that costs so many plain steps."""
        blocks = np.tile([0.9, 0.8, 0.7, 0.0], (len(idle), 1)), np.zeros((len(idle), 4))
        history |= {"idle": idle}
        return DRAFTS[chosen([1.0, look, cost, 9.0], *blocks, remaining=remaining, **history)]

    # The sooner the nearer drafting is to paying, and the cheaper it is to look; within limits.
    for look, cost, first in [(3.0, 3.5, 14), (3.0, 3.6, 27), (3.0, 3.8, 97), (2.0, 3.6, 14)]:
        assert tries([first], look, cost) and not tries([first - 1], look, cost)
    # And the fewer blocks there were.
    for blocks, first in [(1e6, 27), (3.0, 16), (1.0, 11)]:
        assert tries([first], 3.0, 3.6, blocks=[blocks])
        assert not tries([first - 1], 3.0, 3.6, blocks=[blocks])
    assert tries([255], 3.0, 8.0) and not tries([254], 3.0, 8.0)
    assert tries([8], 1.1) and not tries([7], 1.1)
    # When most rows find it is time, and not for the sake of a row that has ended.
    assert not tries([8, 7, 7], 1.1) and tries([8, 8, 7], 1.1)
    assert not tries([8, 0], 1.1, remaining=[0, 30])
    # Not where little is left to be gained by it.
    assert not tries([8], 1.1, remaining=8) and tries([8], 1.1, remaining=9)


def test_plain_decoding_costs_the_looks_that_it_takes():
    """Who drafts goes on where plain steps win less than the looks between them would cost."""
    usual = [0.9, 0.8, 0.7, 0.0]  # 3.4 tokens of a step.
    for cost, drafts in [(3.3, True), (3.5, True), (3.7, False)]:
        costs = [1.0, 3.0, cost, 9.0]
        assert DRAFTS[chosen(costs, usual, usual)] == drafts
        assert DRAFTS[chosen(costs, usual, np.zeros(4))] == (cost < 3.4)


def test_a_batch_that_is_not_refilled_waits_for_its_slow_rows():
    costs = [1.0, 1.8, 2.3, 2.6]
    fast, slow = [0.99, 0.98, 0.97, 0.96], [0.3, 0.1, 0.0, 0.0]
    rows = [fast, fast, fast, slow]
    assert DRAFTS[chosen(costs, rows, rows)]
    assert not DRAFTS[chosen(costs, rows, rows, refilled=False)]
    # The slow row is the last no longer where it has little left.
    assert DRAFTS[chosen(costs, rows, rows, refilled=False, remaining=[90, 90, 90, 9])]
    assert chosen(costs, [fast] * 4, [fast] * 4) == chosen(
        costs, [fast] * 4, [fast] * 4, refilled=False
    )


def test_a_batch_that_is_not_refilled_waits_for_its_unlucky_rows():
    """Of many equal rows some fall behind, the more so the less is sure and the less is left."""
    costs, fair = [1.0, 1.8, 2.0, 2.2], [0.6, 0.4, 0.3, 0.2]

    def drafts(rows, remaining, curve=fair, refilled=False) -> bool:
        curves = [curve] * rows
        return DRAFTS[chosen(costs, curves, curves, remaining=remaining, refilled=refilled)]

    assert drafts(1, 20) and not drafts(32, 20)
    assert drafts(32, 400) and drafts(32, 20, refilled=True)
    assert drafts(32, 20, curve=[0.999] * 4)


def test_what_a_history_remembers():
    survival = jnp.array([[0.5, 0.25, 0.125]])
    hope, block = flex._HOPE ** np.arange(1, 4), survival[0]
    history = note_block(empty_history(1, 4), survival)
    np.testing.assert_allclose(history.survival[0], hope + block, rtol=1e-6)
    # Two were verified, and the second was rejected: each had had a chance of a half.
    history = note_verdict(history, survival, jnp.array([2]), jnp.array([1]))
    assert history.rejected == 1 and history.foretold == 1 and history.idle == 1
    assert history.accepted == 1
    np.testing.assert_allclose(history.promised[0], np.sum(block[:2]), rtol=1e-6)
    # Behind the first, which was rejected, nothing is judged.
    other = note_verdict(history, survival, jnp.array([3]), jnp.array([0]))
    np.testing.assert_allclose([other.rejected[0], other.foretold[0]], [1.98, 1.48], rtol=1e-6)
    # All of them accepted is no rejection; nothing verified is no verdict.
    other = note_verdict(history, survival, jnp.array([3]), jnp.array([3]))
    np.testing.assert_allclose([other.rejected[0], other.foretold[0]], [0.98, 2.48], rtol=1e-6)
    history = note_verdict(history, survival, jnp.array([0]), jnp.array([0]))
    np.testing.assert_allclose([history.rejected[0], history.foretold[0]], 0.98, rtol=1e-6)
    assert history.idle == 2
    # Two steps fade what was known, whatever they were.
    history = note_block(history, jnp.zeros((1, 3)))
    assert history.idle == 0
    kept = flex._BLOCK_DECAY**2
    np.testing.assert_allclose(history.survival[0], kept * (hope + block), rtol=1e-6)
    np.testing.assert_allclose(history.blocks, kept * 2 + 1)
    # From then on, blocks are seen as verdicts were until now.
    history = dataclasses.replace(
        history, rejected=jnp.array([2e6]), foretold=jnp.array([1e6]), survival=jnp.zeros((1, 3))
    )
    np.testing.assert_allclose(note_block(history, survival).survival, survival**2, rtol=1e-4)
    promised = 0.98 * history.promised + np.sum(survival[:, :2] ** 2)
    other = note_verdict(history, survival, jnp.array([2]), jnp.array([2]))
    np.testing.assert_allclose(other.promised, promised, rtol=1e-4)


def profile_of(verify, draft, parallel) -> Profile:
    """Of n = 5, eight rows and 64 slots."""
    return Profile(
        (StepCosts(5, 8, 64, dict(zip((0, 3, 4), verify, strict=True)), draft, parallel),)
    )


def any_profile(rng: np.random.Generator) -> Profile:
    """Random costs of which the first is the cheapest by far; which steps are compiled is fixed."""
    if rng.random() < 0.3:  # A draft pass for nothing but the next step's sake.
        return profile_of([1.0, 1.2, 100.0], 0.01, {3: 2.0, 4: 40.0})
    draft, *verify = np.exp(rng.normal(0, 2, 4))
    verify = [verify[i] / (100 if rng.random() < 0.5 else 1) for i in range(3)]
    sequential = [verify[1] + draft, verify[2] + draft]
    return profile_of(verify, draft, {3: 1.5 * sequential[0], 4: 0.5 * sequential[1]})


@pytest.mark.parametrize("num_drafts", [0, 3, 4])
@pytest.mark.parametrize("which", ["draft", "foreign_draft"])
def test_absurd_costs_force_every_step(decode, prompts, plain, forcing, num_drafts, which, request):
    draft = request.getfixturevalue(which)
    profile = Profile((forcing[num_drafts],))
    out = decode(draft, prompts, 40, "flex", 0.0, profile=profile)
    assert out.tokens == plain
    assert {v for row in out.verify_lengths for v in row} == {num_drafts}


@pytest.mark.parametrize(
    ("which", "temperature"),
    [
        ("draft", 0.0),
        ("draft", 1.0),
        ("foreign_draft", 0.0),
        pytest.param("foreign_draft", 1.0, marks=pytest.mark.slow),
    ],
)
def test_any_step_may_follow_any_other(begin, decode, prompts, which, temperature, request):
    """Costs change from step to step, as no machine's do; ragged budgets and a stop token."""
    settings = {"stops": [17, 40], "temperature": temperature}
    budgets = [40, 0, 1, 40, 17, 40, 33, 40]
    expected = decode(None, prompts, budgets, "ar", **settings)
    rng = np.random.default_rng(5)
    pairs = set()
    draft = request.getfixturevalue(which)
    for _ in range(6):
        decoding = begin(draft, prompts, budgets, "flex", profile=any_profile(rng), **settings)
        assert decoding.program.variants == VARIANTS
        last = None
        while bool(decoding.state.active.any()):
            decoding.cost_model = dataclasses.replace(decoding.cost_model, profile=any_profile(rng))
            state = decoding.state
            index = choose(
                decoding.flex_costs(state),
                state.history,
                state.block.survival,
                (state.budget - state.num_emitted) * state.active,
            )
            pairs.add((last, int(index)))
            last = int(index)
            decoding.advance(1)
        out = decoding.output()
        assert (out.tokens, out.finish_reasons) == (expected.tokens, expected.finish_reasons)
    assert {index for _, index in pairs} == {0, 1, 2, 3}
    assert len(pairs) > 12  # Of twenty.


def test_another_profile_compiles_nothing(begin, draft, prompts):
    rng = np.random.default_rng(6)
    begin(draft, prompts, 40, "flex", profile=any_profile(rng)).advance(10_000)
    compiled = run._cache_size()
    for _ in range(3):
        begin(draft, prompts, 40, "flex", profile=any_profile(rng)).advance(10_000)
    assert run._cache_size() == compiled


def test_no_row_verifies_more_than_its_threshold_lets_it(decode, draft, prompts, forcing):
    generous = Profile((forcing[4],))
    out = decode(draft, prompts, 40, "flex", 0.3, profile=generous)
    fixed = decode(draft, prompts, 40, "parallel", 0.3)
    assert out.verify_lengths == fixed.verify_lengths
    assert out.acceptance_lengths == fixed.acceptance_lengths


def test_rejection_is_repeatable_and_leaves_greedy_rows_alone(decode, draft, prompts, plain):
    settings = {
        "sampling": "rejection",
        "temperature": [0.0, 1.0, 0.7, 1.5, 0.0, 1.0, 2.0, 1.0],
        "profile": any_profile(np.random.default_rng(7)),
    }
    first, second = (decode(draft, prompts, 40, "flex", 0.0, **settings) for _ in range(2))
    assert first == second
    assert first.tokens[0] == plain[0] and first.tokens[4] == plain[4]


def test_flex_is_the_default_and_without_a_draft_it_is_plain(target, draft, prompts, forcing):
    profile = Profile((forcing[3],))
    out = fd.generate(target, draft, prompts[:2], 12, confidence_threshold=0.0, profile=profile)
    assert {v for row in out.verify_lengths for v in row} == {3}  # What these costs force.
    out = fd.generate(target, None, prompts[:2], 12)
    assert out == fd.generate(target, None, prompts[:2], 12, schedule="ar")


@pytest.mark.parametrize(("rate", "tau"), [(1.0, 5.0), (0.5, 1.9375)])
def test_forced_acceptance_is_what_was_asked_for(decode, draft, prompts, rate, tau):
    """1 + rate + rate^2 + ... + rate^4; the tokens mean nothing, their number is the budget."""
    out = decode(draft, prompts, 40, "sequential", 0.0, forced_acceptance=rate)
    assert out.tau == pytest.approx(tau, rel=0.0 if rate == 1 else 0.15)
    assert [len(row) for row in out.tokens] == [40] * 8


@pytest.mark.parametrize("schedule", ["parallel", "sequential"])
def test_forced_acceptance_saves_no_work(begin, draft, prompts, schedule):
    def flops(**settings) -> float:
        decoding = begin(draft, prompts, 40, schedule, 0.0, **settings)
        compiled = run.lower(*decoding._running(decoding.state, 8, 1)).compile()
        return compiled.cost_analysis()["flops"]

    assert flops(forced_acceptance=0.5) == pytest.approx(flops(), rel=0.02)
