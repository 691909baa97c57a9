"""How many drafts each rule of random decoding accepts, side by side on the same drafts.

Beside the two rules of the decoder stands the one of FlexDraft's published code: draft and target
draw independently, and a draft is kept where both drew the same token.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.program import DecodeProgram, Variables
from flexdraft_jax.decoding.requests import check_requests
from flexdraft_jax.decoding.sampling import probabilities
from flexdraft_jax.decoding.state import DecodeState
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

RULES = ("coupled", "rejection", "match")


@dataclasses.dataclass(frozen=True)
class AcceptanceRow:
    """One temperature on the prompts of one domain, every draft verified.

    Attributes:
        domain: of the prompts.
        temperature: of all rows.
        num_prompts: how many there were.
        num_drafts: how many drafts were judged: the accepted ones, and the first refused one of
            each step. Judged by the coupled rule, so that the three rates share them.
        num_accepted: how many of them were accepted.
        rates: mean probability that a judged draft is accepted, by rule.
        tau: mean acceptance length over steps of real decoding, of the two rules that it knows.
    """

    domain: str
    temperature: float
    num_prompts: int
    num_drafts: int
    num_accepted: int
    rates: dict[str, float]
    tau: dict[str, float]


def measure_acceptance(
    target: Target,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    *,
    domain: str,
    temperature: float,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> AcceptanceRow:
    """Answers all prompts in one batch, by each rule, and counts.

    Args:
        target: the model.
        draft: its draft.
        prompts: lists of token ids.
        domain: for the report.
        temperature: 0 decodes greedily, and all rules are the same.
        max_new_tokens: budget of each prompt.
        seed: of the random numbers.

    Raises:
        ValueError: no draft, a bad argument of `generate`, or answers without a step.
    """
    requests = check_requests(
        target.config,
        prompts,
        max_new_tokens,
        0.0,
        target.eos_token_ids,
        temperature=temperature,
        seed=seed,
    )
    decoding = start(target, draft, requests, "sequential", sampling="coupled")
    rates = []  # of each step, [R, B, n - 1]
    while bool(jnp.any(decoding.state.active)):
        rates.append(
            np.asarray(acceptance_rates(decoding.program, decoding.variables, decoding.state))
        )
        decoding.advance(1)
    coupled = decoding.output()
    # Of a + 1 tokens a are accepted drafts, and the next draft, if there is one, was refused.
    judged = [
        rates[step][:, row, :length]
        for row, lengths in enumerate(coupled.acceptance_lengths)
        for step, length in enumerate(lengths)
    ]
    if not judged:
        raise ValueError(f"max_new_tokens={max_new_tokens}: no answer took a step")
    mean = np.concatenate(judged, axis=1).mean(axis=1)

    decoding = start(target, draft, requests, "sequential", sampling="rejection")
    decoding.advance(max_new_tokens)
    return AcceptanceRow(
        domain=domain,
        temperature=temperature,
        num_prompts=len(requests),
        num_drafts=sum(slots.shape[1] for slots in judged),
        num_accepted=sum(a - 1 for lengths in coupled.acceptance_lengths for a in lengths),
        rates={rule: float(rate) for rule, rate in zip(RULES, mean, strict=True)},
        tau={"coupled": coupled.tau, "rejection": decoding.output().tau},
    )


@functools.partial(jax.jit, static_argnames="program")
def acceptance_rates(program: DecodeProgram, variables: Variables, state: DecodeState) -> jax.Array:
    """Probability that each draft is accepted, by each of `RULES`: [R, B, n - 1].

    Over all values that the draft could have had, given that those before it are accepted.

    Args:
        program: the compiled choices.
        variables: target and draft parameters.
        state: before a step.
    """
    block = state.block
    clean = program.apply(variables, "clean_pass", block.tokens, state.length, state.cache)
    logits = program.apply(variables, "target_logits", clean.hidden[:, :-1])
    drafted = program.apply(variables, "draft_logits", block.hidden[:, 1:], block.tokens[:, :1])
    p, q = probabilities(logits, state.sampling), probabilities(drafted, state.sampling)
    rejection, match = jnp.sum(jnp.minimum(p, q), axis=-1), jnp.sum(p * q, axis=-1)
    return jnp.stack([coupled_rate(p, q), rejection, match])


def coupled_rate(p: jax.Array, q: jax.Array) -> jax.Array:
    """Probability that two draws with the same Gumbel noise agree: [..., V] twice -> [...].

    They agree in token i with a probability of 1 / sum_j max(p_j / p_i, q_j / q_i). In the order of
    p / q those sums are p over all tokens behind i, and q over the others.
    """
    order = jnp.argsort(jnp.where(p > 0, p / q, 0.0), axis=-1)
    p, q = jnp.take_along_axis(p, order, axis=-1), jnp.take_along_axis(q, order, axis=-1)
    behind = jnp.maximum(jnp.sum(p, axis=-1, keepdims=True) - jnp.cumsum(p, axis=-1), 0.0)
    agree = 1 / (behind / p + jnp.cumsum(q, axis=-1) / q)
    return jnp.sum(jnp.where((p > 0) & (q > 0), agree, 0.0), axis=-1)


def acceptance_table(rows: Sequence[AcceptanceRow]) -> Table:
    """One line per row."""
    return Table(
        title="Drafts accepted at temperature > 0, by rule",
        columns=(
            "held-out prompts",
            "temperature",
            *RULES,
            "tau coupled",
            "tau rejection",
        ),
        rows=[
            (
                row.domain.replace("_", " "),
                f"{row.temperature:g}",
                *(f"{row.rates[rule]:.3f}" for rule in RULES),
                f"{row.tau['coupled']:.2f}",
                f"{row.tau['rejection']:.2f}",
            )
            for row in rows
        ],
        note=(
            "Mean probability that a draft is accepted, given that those before it were; the "
            "same drafts for the three rules, every draft verified. match: draft and target draw "
            "independently. tau: tokens per step of real decoding."
        ),
    )
