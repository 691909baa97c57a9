"""Lists of prompts in, lists of tokens out."""

import dataclasses
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flexdraft_jax.decoding.costs import (
    CostModel,
    Profile,
    Variant,
    draft_buckets,
    find_profile,
    flex_variants,
)
from flexdraft_jax.decoding.loop import prefill, run
from flexdraft_jax.decoding.requests import (
    Request,
    check_models,
    check_requests,
    check_settings,
    integer,
)
from flexdraft_jax.decoding.sampling import RowSampling
from flexdraft_jax.decoding.state import DecodeState, init_state
from flexdraft_jax.decoding.steps import DecodeProgram, Variables
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.flexdraft import flexdraft_model, flexdraft_variables
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What a batch was answered, one entry per row.

    Attributes:
        tokens: new token ids, up to the stop token (included) or the budget.
        acceptance_lengths: a + 1 for each decoding step the row took part in. Not cut at a stop
            token or at the budget, so the sum can exceed the number of new tokens; prefill, which
            gives the first token, is no step.
        verify_lengths: v for each of those steps.
        finish_reasons: "stop" or "length"; "running" only in what `stream` yields on the way.
    """

    tokens: list[list[int]]
    acceptance_lengths: list[list[int]]
    verify_lengths: list[list[int]]
    finish_reasons: list[str]

    @property
    def tau(self) -> float:
        """Mean acceptance length over all steps of all rows; nan without any step."""
        steps = [a for row in self.acceptance_lengths for a in row]
        return float(np.mean(steps)) if steps else float("nan")


def generate(
    target: Target,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    schedule: str = "flex",
    block_size: int | None = None,
    confidence_threshold: float = 0.01,
    pruning_strategy: str = "cumulative_product",
    stop_token_ids: Sequence[int] | None = None,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    row_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
) -> GenerateOutput:
    """Decodes; every schedule gives the tokens of plain decoding.

    Prompts of any lengths share a batch. The program is compiled once per bucket of lengths.

    Args:
        target: the model.
        draft: its trained draft; None decodes plainly.
        prompts: B lists of token ids.
        max_new_tokens: an int, or one per row. 0 gives no tokens.
        schedule: "flex" chooses by cost and confidence, step by step, and needs no help. "ar" is
            plain decoding; "parallel" drafts and verifies in one pass, always; "sequential" in
            two. Only the speed depends on it.
        block_size: n, tokens of a candidate block; the draft's own if None.
        confidence_threshold: drafts less sure than this are not verified; 0 verifies all.
        pruning_strategy: "cumulative_product" or "min_confidence".
        stop_token_ids: tokens that end a row; None stops at no token. `target.eos_token_ids` are
            the model's own.
        temperature: 0 decodes greedily. This and the next four are one number, or one per row.
        top_k: draw from this many most likely tokens; 0 is all of them.
        top_p: draw from the fewest most likely tokens that have this probability together.
        min_p: draw from tokens with at least this share of the largest probability.
        seed: a row's random numbers depend on its seed and its row id alone.
        row_ids: rows of one seed and different ids are independent; 0, 1, 2, ... if None.
        sampling: how drafts are accepted at temperature > 0. "coupled": target and draft choose
            with the same random numbers, and the tokens are those of plain decoding with that
            seed. "rejection": a little more is accepted, the law of the tokens is that of plain
            decoding, and the tokens themselves depend on the verify lengths.
        profile: measured costs of steps for "flex", or a file of them. None takes the one that
            `infer/measure_steps.py` has written for this model and device, or estimates.

    Raises:
        ValueError: an argument out of its range; it is named, with what would be right.
        TypeError: an argument of the wrong kind.
    """
    check_models(target, draft)
    requests = check_requests(
        target.config,
        prompts,
        max_new_tokens,
        confidence_threshold,
        stop_token_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        row_ids=row_ids,
    )
    decoding = start(
        target,
        draft,
        requests,
        schedule,
        block_size,
        pruning_strategy,
        sampling=sampling,
        profile=profile,
    )
    decoding.advance(_ALL_STEPS)
    return decoding.output()


def stream(
    target: Target,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    schedule: str = "flex",
    block_size: int | None = None,
    confidence_threshold: float = 0.01,
    pruning_strategy: str = "cumulative_product",
    stop_token_ids: Sequence[int] | None = None,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    row_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
    steps_per_update: int = 1,
) -> Iterator[GenerateOutput]:
    """Like `generate`, but yields all that has been emitted every `steps_per_update` steps.

    Raises:
        ValueError: as `generate`, or `steps_per_update` under 1; at the call, not at the first
            update.
    """
    if integer("steps_per_update", steps_per_update) < 1:
        raise ValueError(f"steps_per_update={steps_per_update}: must be at least 1")
    check_models(target, draft)
    requests = check_requests(
        target.config,
        prompts,
        max_new_tokens,
        confidence_threshold,
        stop_token_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        row_ids=row_ids,
    )
    decoding = start(
        target,
        draft,
        requests,
        schedule,
        block_size,
        pruning_strategy,
        sampling=sampling,
        profile=profile,
    )
    return decoding.updates(steps_per_update)


# More steps than any row can take: each emits at least one token.
_ALL_STEPS = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Array sizes that a program is compiled for, in tokens.

    Attributes:
        prompt: P, of the prefill.
        output: O, emitted tokens and logged steps of a row.
        slots: S, of the cache.
    """

    prompt: int
    output: int
    slots: int


def sizes_for(requests: Sequence[Request], block_size: int) -> Sizes:
    """The buckets that hold every request.

    A row needs prompt + budget + n - 2 slots: its last step is the one that emits token `budget`,
    and writes n tokens behind the prompt and the first budget - 2 of the new ones.
    """
    prompt = bucket(max(len(r.prompt) for r in requests), smallest=8)
    slots = bucket(max(len(r.prompt) + r.budget for r in requests) + block_size - 2)
    return Sizes(
        prompt=prompt,
        output=bucket(max(r.budget for r in requests)),
        slots=max(prompt, slots),
    )


@dataclasses.dataclass
class Decoding:
    """A batch between two calls of the compiled loop.

    Attributes:
        program: what is compiled.
        variables: target and draft parameters.
        state: donated to, and replaced by, every call.
        cost_model: what flex chooses by; None where a fixed schedule leaves no choice.
    """

    program: DecodeProgram
    variables: Variables
    state: DecodeState
    cost_model: CostModel | None = None

    def advance(self, max_steps: int) -> None:
        """Decodes for `max_steps` more, or until every row is finished."""
        self.state = run(self.program, self.variables, self.state, jnp.int32(max_steps), self.costs)

    @property
    def costs(self) -> jax.Array | None:
        """[variants] milliseconds of a step of each, at the state's sizes."""
        if self.cost_model is None:
            return None
        costs = self.cost_model.at(len(self.state.length), self.state.cache.num_slots)
        return jnp.array([costs.of(variant) for variant in self.program.variants], jnp.float32)

    def updates(self, steps_per_update: int) -> Iterator[GenerateOutput]:
        """All that has been emitted, after prefill and after every `steps_per_update` steps."""
        yield self.output()
        while bool(jnp.any(self.state.active)):
            self.advance(steps_per_update)
            yield self.output()

    def output(self) -> GenerateOutput:
        """All that has been emitted so far; waits for the device.

        Raises:
            FloatingPointError: the target's logits were NaN, so that there is no next token.
        """
        state = self.state
        small = (
            state.tokens,
            state.num_emitted,
            state.acceptance_lengths,
            state.verify_lengths,
            state.num_steps,
            state.finish_reason,
        )
        tokens, emitted, acceptance, verify, steps, reason = jax.device_get(small)
        vocab_size = self.program.model.config.vocab_size
        for row, (written, count) in enumerate(zip(tokens, emitted, strict=True)):
            if np.any(written[:count] >= vocab_size):  # See `greedy_token`.
                raise FloatingPointError(
                    f"row {row}: the target's logits are NaN from token "
                    f"{int(np.argmax(written >= vocab_size))} on; its activations overflow"
                )
        return GenerateOutput(
            tokens=[row[:k].tolist() for row, k in zip(tokens, emitted, strict=True)],
            acceptance_lengths=[r[:k].tolist() for r, k in zip(acceptance, steps, strict=True)],
            verify_lengths=[r[:k].tolist() for r, k in zip(verify, steps, strict=True)],
            finish_reasons=[_FINISH_REASONS[int(r)] for r in reason],
        )


_FINISH_REASONS = ("running", "stop", "length")


def start(
    target: Target,
    draft: Draft | None,
    requests: Sequence[Request],
    schedule: str,
    block_size: int | None = None,
    pruning_strategy: str = "cumulative_product",
    sizes: Sizes | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
    forced_acceptance: float | None = None,
) -> Decoding:
    """Compiles what isn't compiled yet and reads the prompts of checked requests.

    Args:
        target: the model.
        draft: its draft, or None to decode plainly.
        requests: from `check_requests`, one per row.
        schedule: as for `generate`.
        block_size: n; the draft's own if None.
        pruning_strategy: "cumulative_product" or "min_confidence".
        sizes: to compile for, where several calls are to share a program; else the smallest
            buckets that hold the requests.
        sampling: "coupled" or "rejection".
        profile: as for `generate`.
        forced_acceptance: for timing alone, see `DecodeProgram`.

    Raises:
        ValueError: settings that `check_settings` refuses, or a file that is no profile.
    """
    block_size = check_settings(target, draft, schedule, block_size, pruning_strategy, sampling)
    draft = None if schedule == "ar" else draft
    sizes = sizes or sizes_for(requests, block_size)
    cost_model = None
    if schedule == "flex" and draft is not None:
        measured = find_profile(target.config, draft.config, target.dtype, profile)
        cost_model = CostModel(target.config, draft.config, target.dtype, block_size, measured)
        variants = flex_variants(cost_model.at(len(requests), sizes.slots))
    else:
        verify_all = all(r.confidence_threshold == 0 for r in requests)
        variants = fixed_variants("ar" if draft is None else schedule, block_size, verify_all)
    program = DecodeProgram(
        model=flexdraft_model(target, draft),
        block_size=block_size,
        pruning_strategy=pruning_strategy,
        sampling=sampling if any(r.temperature > 0 for r in requests) else "greedy",
        variants=variants,
        forced_acceptance=forced_acceptance,
    )
    num_stops = bucket(max(len(r.stop_token_ids) for r in requests), smallest=4)
    state = init_state(
        target.config,
        block_size=block_size,
        num_slots=sizes.slots,
        output_size=sizes.output,
        budget=jnp.array([r.budget for r in requests], jnp.int32),
        stop_token_ids=_padded([r.stop_token_ids for r in requests], -1, num_stops),
        confidence_threshold=jnp.array([r.confidence_threshold for r in requests], jnp.float32),
        sampling=row_sampling(requests),
        dtype=target.dtype,
    )
    variables = flexdraft_variables(target, draft)
    tokens = _padded([r.prompt for r in requests], 0, sizes.prompt)
    lengths = jnp.array([len(r.prompt) for r in requests], jnp.int32)
    state = prefill(program.for_prefill(), variables, state, tokens, lengths)
    return Decoding(program, variables, state, cost_model)


def row_sampling(requests: Sequence[Request]) -> RowSampling:
    """The requests' fields as arrays, one entry per row."""

    def column(field: str, dtype: type) -> jax.Array:
        return jnp.asarray(np.array([getattr(r, field) for r in requests], dtype))

    return RowSampling(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        seed=column("seed", np.uint32),
        row_id=column("row_id", np.uint32),
    )


def fixed_variants(schedule: str, block_size: int, verify_all: bool) -> tuple[Variant, ...]:
    """The steps to compile where the schedule is given.

    Where every step verifies all n - 1 drafts (threshold 0), one variant is enough.
    """
    counts = (block_size - 1,) if verify_all else draft_buckets(block_size)
    return tuple(Variant(schedule, num_drafts) for num_drafts in counts)


def bucket(size: int, smallest: int = 32) -> int:
    """The array size for `size` entries: 32, 48, 64, 96, 128, 192, ...

    Programs are compiled per size, so sizes are few; attention pays for every slot, so no more
    than a third of them is padding.
    """
    power = smallest
    while power < size:
        if power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def _padded(rows: Sequence[Sequence[int]], fill: int, size: int) -> jax.Array:
    """Rows of tokens as one array [B, size]."""
    out = np.full((len(rows), size), fill, np.int32)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return jnp.asarray(out)
