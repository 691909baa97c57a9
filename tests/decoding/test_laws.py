"""Exactness of random decoding, by statistics: every token has the law of plain decoding.

Pearson's chi-square test with fixed seeds, first on the acceptance rules alone, a million draws for
each kind of draft, then on the joint law of four tokens from the compiled loop. All tests together
raise a false alarm with a probability of at most 1e-3 (Bonferroni): each has that share of it.
Three deliberate mistakes show what the same tests see.
"""

import dataclasses
import functools
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flexdraft_jax.decoding import acceptance, steps
from flexdraft_jax.decoding.acceptance import accept_by_rejection, accept_matching
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.rows import row_sampling
from flexdraft_jax.decoding.sampling import (
    Purpose,
    RowSampling,
    draw_from,
    draw_token,
    probabilities,
)
from flexdraft_jax.decoding.sizes import Sizes
from flexdraft_jax.models.target import TargetModel

LARGEST_FAMILY = 200  # More than the tests of this file make, mistakes not counted.
ALPHA = 1e-3 / LARGEST_FAMILY


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of Pearson's test that the counts come from the law; rare cells are pooled to about five."""
    counts, law = np.ravel(counts), np.ravel(law).astype(np.float64)
    assert abs(law.sum() - 1) < 1e-5
    possible = law > 1e-12
    if counts[~possible].any():
        return 0.0
    order = np.argsort(law[possible])
    counts, expected = counts[possible][order], (law[possible] / law.sum())[order] * counts.sum()
    cells = np.unique(np.cumsum(expected) // 5, return_inverse=True)[1]
    counts, expected = np.bincount(cells, counts), np.bincount(cells, expected)
    statistic = np.sum((counts - expected) ** 2 / expected)
    return float(stats.chi2.sf(statistic, len(counts) - 1)) if len(counts) > 1 else 1.0


# --- the rules alone ----------------------------------------------------------------------------

V = 4
CHUNK, NUM_CHUNKS = 2**15, 32
RULES = ("rejection", "coupled")


_RANDOM = np.random.default_rng(0).dirichlet(np.ones(V), size=V + 2)
_EYE = np.eye(V)

# The target's law p after each token [V, V], and the laws q of the two drafts [2, V].
CASES = {
    "good": (_RANDOM[:V], 0.9 * _RANDOM[[0, 1]] + 0.1 / V),
    "bad": (_RANDOM[:V], _RANDOM[V:]),
    "too sure": (np.full((V, V), 1 / V), np.tile([0.4, 0.3, 0.2, 0.1], (2, 1))),
    "the target's own": (np.tile(_RANDOM[0], (V, 1)), np.tile(_RANDOM[0], (2, 1))),
    "of one token": (_RANDOM[:V], _EYE[[1, 3]]),
    "of one token, the wrong one": (np.tile([0.3, 0.0, 0.7, 0.0], (V, 1)), _EYE[[1, 3]]),
    "disjoint": (
        np.tile([0.3, 0.0, 0.7, 0.0], (V, 1)),
        np.array([[0.0, 0.6, 0.0, 0.4], [0.0, 0.1, 0.0, 0.9]]),
    ),
    "wide, for a certain target": (_EYE[[2, 0, 1, 3]], np.full((2, V), 1 / V)),
    "partly impossible": (
        np.array([[0.5, 0.5, 0, 0], [0, 0.2, 0.8, 0], [0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]]),
        np.array([[0.0, 0.5, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25]]),
    ),
}


def accepted_mass(rule: str, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """[V] probability that the draft is that token and is accepted."""
    if rule == "rejection":
        return np.minimum(p, q)
    mass = np.zeros(V)
    for i in np.flatnonzero((p > 0) & (q > 0)):
        mass[i] = 1 / np.maximum(p / p[i], q / q[i]).sum()
    return mass


def exact_law(rule: str, p: np.ndarray, q: np.ndarray, v: int, last: int = 0, slot: int = 0):
    """Probability of everything that a step can emit: {tokens: probability}."""
    if slot == v:
        return {(i,): p[last, i] for i in range(V)}
    mass = accepted_mass(rule, p[last], q[slot])
    law = {(i,): p[last, i] - mass[i] for i in range(V)}
    for i in range(V):
        for rest, probability in exact_law(rule, p, q, v, i, slot + 1).items():
            law[i, *rest] = mass[i] * probability
    return law


def emit(rule: str, choose_v, p: jax.Array, q: jax.Array, sampling: RowSampling) -> jax.Array:
    """v and what one step emits, [B, 4], padded with V."""
    batch = sampling.seed.shape[0]
    positions = jnp.broadcast_to(7 + jnp.arange(3), (batch, 3))
    laws = jnp.broadcast_to(q, (batch, 2, V))
    purpose = Purpose.TOKEN if rule == "coupled" else Purpose.DRAFT
    drafts = draw_token(jnp.log(laws), sampling, positions[:, :2], purpose)
    v = choose_v(drafts)
    candidates = jnp.pad(drafts, ((0, 0), (1, 0)))
    target = p[candidates]  # [B, 3, V]
    if rule == "rejection":
        verdict = accept_by_rejection(target, laws, candidates, v, sampling, positions)
    else:
        predicted = draw_token(jnp.log(target), sampling, positions, Purpose.TOKEN)
        verdict = accept_matching(predicted, candidates, v)
    slot, a = jnp.arange(3), verdict.num_accepted[:, None]
    behind = jnp.where(slot == a, verdict.bonus[:, None], V)
    emitted = jnp.where(slot < a, jnp.pad(drafts, ((0, 0), (0, 1))), behind)
    return jnp.concatenate([v[:, None], emitted], axis=1)


def all_in_turn(drafts: jax.Array) -> jax.Array:
    """v = 0, 1, 2, 0, 1, 2, ..."""
    return jnp.arange(drafts.shape[0]) % 3


def simulate(
    rule: str, p: np.ndarray, q: np.ndarray, choose_v=all_in_turn, num_chunks: int = NUM_CHUNKS
) -> np.ndarray:
    """How often each (v, t1, t2, t3) comes out of a million draws, [K, 3, V + 1, V + 1, V + 1].

    Args:
        rule: "rejection" or "coupled".
        p: [K, V, V] of K cases, which share their random numbers.
        q: [K, 2, V].
        choose_v: drafts [B, 2] -> v [B].
        num_chunks: of draws; 32 are a million.
    """
    run = jax.jit(jax.vmap(functools.partial(emit, rule, choose_v), in_axes=(0, 0, None)))
    p, q = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    ones, zeros = jnp.ones(CHUNK, jnp.float32), jnp.zeros(CHUNK, jnp.int32)
    shape = (3, V + 1, V + 1, V + 1)
    counts = np.zeros((len(p), np.prod(shape)), np.int64)
    for chunk in range(num_chunks):
        sampling = RowSampling(
            temperature=ones,
            top_k=zeros,
            top_p=ones,
            min_p=ones * 0,
            seed=jnp.arange(CHUNK, dtype=jnp.uint32),
            row_id=jnp.full(CHUNK, chunk, jnp.uint32),
        )
        for case, outcomes in enumerate(np.asarray(run(p, q, sampling))):
            index = np.ravel_multi_index(outcomes.T, shape)
            counts[case] += np.bincount(index, minlength=counts.shape[1])
    return counts.reshape(-1, *shape)


@functools.cache
def simulated(rule: str) -> dict[str, np.ndarray]:
    p, q = (np.stack(laws) for laws in zip(*CASES.values(), strict=True))
    return dict(zip(CASES, simulate(rule, p, q), strict=True))


def p_of_first(counts: np.ndarray, p: np.ndarray) -> float:
    """Whether the first token has the law p, whatever v is."""
    return p_value(counts.sum(axis=(0, 2, 3))[:V], p[0])


def p_of_step(counts: np.ndarray, rule: str, p: np.ndarray, q: np.ndarray, v: int) -> float:
    """Whether all that is emitted has its law, the number of accepted drafts included."""
    law = np.zeros((V + 1,) * 3)
    for tokens, probability in exact_law(rule, p, q, v).items():
        law[(*tokens, V, V)[:3]] = probability
    return p_value(counts[v], law)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_a_step_emits_the_law_of_the_target(rule, case):
    p, q = CASES[case]
    counts = simulated(rule)[case]
    assert counts.sum() == CHUNK * NUM_CHUNKS
    assert p_of_first(counts, p) > ALPHA
    for v in range(3):
        assert p_of_step(counts, rule, p, q, v) > ALPHA


@pytest.mark.parametrize("case", CASES)
def test_second_tokens_have_the_law_of_the_target_too(case):
    """Joint law of two tokens: behind an accepted draft, p comes next."""
    p, q = CASES[case]
    for rule in RULES:
        mass = accepted_mass(rule, p[0], q[0])
        law = np.column_stack([mass[:, None] * p, p[0] - mass])  # the last column: refused
        counts = simulated(rule)[case][1:].sum(axis=(0, 3))  # of v = 1 and 2
        assert p_value(counts[:V], law) > ALPHA


@pytest.mark.parametrize("rule", RULES)
def test_a_bias_of_half_a_percent_is_seen(rule):
    p, q = CASES["good"]
    shifted = np.roll(p, 1, axis=1)
    share = 0.005 / total_variation(p[0], shifted[0])
    biased = (1 - share) * p + share * shifted
    (counts,) = simulate(rule, biased[None], q[None])
    assert p_of_first(counts, p) < ALPHA
    assert p_of_first(counts, biased) > ALPHA


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * np.abs(p - q).sum()


def test_a_residual_with_the_noise_of_the_draft_is_seen(monkeypatch):
    def reuse(probabilities, sampling, positions, _):
        return draw_from(probabilities, sampling, positions, Purpose.DRAFT)

    monkeypatch.setattr(acceptance, "draw_from", reuse)
    p, q = CASES["too sure"]
    (counts,) = simulate("rejection", p[None], q[None], num_chunks=4)
    assert p_of_first(counts, p) < ALPHA


def test_a_verify_length_that_looks_at_its_drafts_is_seen():
    p, q = CASES["too sure"]
    peeked = {
        rule: simulate(rule, p[None], q[None], lambda drafts: 1 * (drafts[:, 0] == 0), 4)[0]
        for rule in RULES
    }
    assert p_of_first(peeked["rejection"], p) < ALPHA
    assert p_of_first(peeked["coupled"], p) > ALPHA  # the tokens of plain decoding all the same


# --- single draws -------------------------------------------------------------------------------

LOGITS = jnp.array([0.3, -1.0, 1.2, 0.3, -0.4, -4.0])
_draw = jax.jit(draw_token, static_argnames="purpose")


def draws(purpose: Purpose = Purpose.TOKEN, **arguments) -> np.ndarray:
    """Tokens of 128 seeds, 128 row ids and 16 positions."""
    request = Request((0,), 1, **{"temperature": 1.0, **arguments})
    seeds = jnp.repeat(jnp.arange(128, dtype=jnp.uint32), 128)
    row_ids = jnp.tile(jnp.arange(128, dtype=jnp.uint32), 128)
    sampling = row_sampling([request] * seeds.size).replace(seed=seeds, row_id=row_ids)
    positions = jnp.broadcast_to(jnp.arange(16), (seeds.size, 16))
    logits = jnp.broadcast_to(LOGITS, (seeds.size, 16, LOGITS.size))
    return np.asarray(_draw(logits, sampling, positions, purpose=purpose)).reshape(128, 128, 16)


def law_of(**arguments) -> np.ndarray:
    sampling = row_sampling([Request((0,), 1, **{"temperature": 1.0, **arguments})])
    return np.asarray(probabilities(LOGITS[None, None], sampling)[0, 0])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_draws_have_the_warped_law(arguments):
    counts = np.bincount(draws(**arguments).ravel(), minlength=LOGITS.size)
    assert p_value(counts, law_of(**arguments)) > ALPHA


def test_draws_of_other_seeds_rows_positions_and_purposes_are_independent():
    tokens = draws()
    pairs = [(tokens[::2], tokens[1::2]), (tokens[:, ::2], tokens[:, 1::2])]
    pairs += [(tokens[..., ::2], tokens[..., 1::2]), (tokens, draws(Purpose.DRAFT))]
    law = np.outer(law_of(), law_of())
    for one, other in pairs:
        counts = np.bincount((one * LOGITS.size + other).ravel(), minlength=law.size)
        assert p_value(counts, law) > ALPHA


# --- the compiled loop --------------------------------------------------------------------------

# Four tokens from a vocabulary of five, of plain rows and of rows with every filter.
REQUESTS = (
    Request((1, 3), 4, temperature=1.0),
    Request((2,), 4, temperature=0.8, top_k=4, top_p=0.95, min_p=0.02),
)
ROWS, NUM_SEEDS = 4096, 4  # Rows of one request in a batch, and batches.


@pytest.fixture(scope="module")
def exact_joint(five_tokens):
    """The law of a request's four tokens, [5, 5, 5, 5], from whole sequences without a cache."""
    target = five_tokens[0]
    first_three = np.indices((5, 5, 5)).reshape(3, -1).T  # [125, 3]

    @jax.jit
    def forward(sequences, sampling):
        logits = TargetModel(target.config).apply({"params": target.params}, sequences)
        return probabilities(logits[:, -4:], sampling)  # [125, 4, 5]

    def law(request: Request) -> np.ndarray:
        count = len(first_three)
        sequences = np.column_stack([np.tile(request.prompt, (count, 1)), first_three])
        p = np.asarray(forward(sequences, row_sampling([request] * count)))
        of_three = np.take_along_axis(p[:, :3], first_three[..., None], axis=2).prod(axis=1)
        return (of_three * p[:, 3]).reshape(5, 5, 5, 5)

    return law


@dataclasses.dataclass
class Drawn:
    """What came out of the compiled loop.

    Attributes:
        counts: of each four tokens, for each of `REQUESTS`; [2, 5, 5, 5, 5].
        steps: rows by the number of their steps.
        accepted: all a + 1.
        verified: all v.
    """

    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((2, 5, 5, 5, 5)))
    steps: defaultdict = dataclasses.field(default_factory=lambda: defaultdict(int))
    accepted: set = dataclasses.field(default_factory=set)
    verified: set = dataclasses.field(default_factory=set)


def draw(target, draft, rule, schedule, threshold, rows=ROWS, num_seeds=NUM_SEEDS) -> Drawn:
    """Batches of so many rows of each request, one for each seed."""
    drawn = Drawn()
    for seed in range(num_seeds):
        requests = [
            dataclasses.replace(r, confidence_threshold=threshold, seed=seed, row_id=row)
            for r in REQUESTS
            for row in range(rows)
        ]
        sizes = Sizes(prompt=2, slots=8, max_slots=8)
        decoding = start(target, draft, requests, schedule, sizes=sizes, sampling=rule)
        decoding.advance(4)
        out = decoding.output()
        for i, group in enumerate(np.split(np.array(out.tokens), len(REQUESTS))):
            np.add.at(drawn.counts[i], tuple(group.T), 1)
        for taken, lengths in zip(out.acceptance_lengths, out.verify_lengths, strict=True):
            drawn.steps[len(taken)] += 1
            drawn.accepted.update(taken)
            drawn.verified.update(lengths)
    return drawn


@pytest.mark.parametrize(
    ("rule", "which", "threshold", "schedule"),
    [
        ("rejection", 0, 0.1, "sequential"),
        ("rejection", 1, 0.3, "sequential"),
        ("rejection", 0, 0.0, "parallel"),
        ("coupled", 0, 0.1, "parallel"),
    ],
)
def test_four_tokens_have_the_joint_law_of_the_target(
    five_tokens, exact_joint, rule, which, threshold, schedule
):
    target, *drafts = five_tokens
    drawn = draw(target, drafts[which], rule, schedule, threshold)
    for request, found in zip(REQUESTS, drawn.counts, strict=True):
        assert p_value(found, exact_joint(request)) > ALPHA
        warmer = dataclasses.replace(request, temperature=1.1 * request.temperature)
        assert p_value(found, exact_joint(warmer)) < ALPHA
    assert drawn.steps[1] and drawn.steps[2] and drawn.steps[3]
    assert drawn.accepted == {1, 2, 3, 4}
    assert drawn.verified == ({1, 2, 3} if threshold else {3})


def p_of_second(counts: np.ndarray, law: np.ndarray) -> float:
    """Of the second token, the first one that drafts have a part in."""
    return p_value(counts.sum(axis=(0, 2, 3)), law.sum(axis=(0, 2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "rows", "num_seeds"), [("sequential", 4096, 256), ("flex", 8, 4096)]
)
def test_many_more_draws_have_the_joint_law(five_tokens, exact_joint, schedule, rows, num_seeds):
    """A million of each request; and with flex in batches so small that it may choose by luck."""
    target, draft, _ = five_tokens
    drawn = draw(target, draft, "rejection", schedule, 0.1, rows, num_seeds)
    for request, found in zip(REQUESTS, drawn.counts, strict=True):
        assert found.sum() == rows * num_seeds
        assert p_value(found, exact_joint(request)) > ALPHA
        assert p_of_second(found, exact_joint(request)) > ALPHA


@pytest.mark.slow
def test_a_bias_of_half_a_percent_in_the_compiled_loop_is_seen(
    five_tokens, exact_joint, monkeypatch
):
    def biased(target, drafted, *rest):
        """Moves so much of the target's law to the next token."""
        shifted = jnp.roll(target, 1, axis=-1)
        distance = 0.5 * jnp.sum(jnp.abs(target - shifted), axis=-1, keepdims=True)
        return accept_by_rejection(target + 0.005 / distance * (shifted - target), drafted, *rest)

    target, draft, _ = five_tokens
    monkeypatch.setattr(steps, "accept_by_rejection", biased)
    jax.clear_caches()
    try:
        drawn = draw(target, draft, "rejection", "sequential", 0.1, num_seeds=256)
    finally:
        jax.clear_caches()
    assert p_of_second(drawn.counts[0], exact_joint(REQUESTS[0])) < ALPHA
