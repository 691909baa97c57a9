"""What a caller asks for, checked before anything is compiled."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.confidence import PRUNING_STRATEGIES
from flexdraft_jax.decoding.sampling import SAMPLING_RULES
from flexdraft_jax.decoding.steps import SCHEDULES
from flexdraft_jax.models.attention import BACKENDS
from flexdraft_jax.models.draft import Draft, check_draft_fits
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Request:
    """One row.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: tokens to emit at most.
        confidence_threshold: drafts less sure than this are not verified; 0 verifies all.
        stop_token_ids: tokens that end the row, once emitted.
        temperature: 0 decodes greedily; the fields below count for random rows alone.
        top_k: most likely tokens that may be drawn; 0 is all of them.
        top_p: draw from the fewest most likely tokens that have this probability together.
        min_p: draw from tokens with at least this share of the largest probability.
        seed: of the row's random numbers.
        row_id: rows of one seed and different ids are independent.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    confidence_threshold: float = 0.01
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    row_id: int = 0


def check_models(target: Target, draft: Draft | None) -> None:
    """Raises TypeError where an argument is no model, such as the two in the wrong order."""
    if not isinstance(target, Target):
        raise TypeError(f"target is a {type(target).__name__}: must be a Target")
    if not isinstance(draft, Draft | None):
        raise TypeError(f"draft is a {type(draft).__name__}: must be a Draft or None")


def check_requests(
    config: TargetConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    confidence_threshold: float,
    stop_token_ids: Sequence[int] | None,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    row_ids: Sequence[int] | None = None,
) -> list[Request]:
    """One `Request` per prompt; the arguments are those of `generate`.

    Raises:
        ValueError: no prompts, an empty prompt, an id outside the vocabulary, a negative budget,
            a row longer than the target's context, a number out of its range, or a list with
            another number of entries than there are prompts.
        TypeError: something that should be a number or a list of them is neither.
    """
    if not _is_list(prompts):
        raise TypeError(f"prompts={prompts!r}: must be a list of lists of token ids")
    if len(prompts) == 0:
        raise ValueError(f"prompts={prompts!r}: must be a non-empty list of lists of token ids")
    if not isinstance(confidence_threshold, numbers.Real):
        raise TypeError(f"confidence_threshold={confidence_threshold!r}: must be a number")
    if not 0 <= confidence_threshold <= 1:  # false for nan as well
        raise ValueError(f"confidence_threshold={confidence_threshold}: must be between 0 and 1")
    count = len(prompts)
    budgets = _integers("max_new_tokens", max_new_tokens, count)
    temperatures = _numbers("temperature", temperature, count, "0 or more", lambda x: x >= 0)
    top_ks = _integers("top_k", top_k, count)
    top_ps = _numbers("top_p", top_p, count, "above 0 and at most 1", lambda x: 0 < x <= 1)
    min_ps = _numbers("min_p", min_p, count, "between 0 and 1", lambda x: 0 <= x <= 1)
    seeds = _integers("seed", seed, count, _LARGEST_SEED)
    row_ids = _integers(
        "row_ids", range(count) if row_ids is None else row_ids, count, _LARGEST_SEED
    )
    stop_token_ids = () if stop_token_ids is None else stop_token_ids
    if not _is_list(stop_token_ids):
        raise TypeError(f"stop_token_ids={stop_token_ids!r}: must be None or a list of token ids")
    stops = tuple(
        _token(config, f"stop_token_ids[{i}]", token) for i, token in enumerate(stop_token_ids)
    )
    requests = []
    drawn = zip(temperatures, top_ks, top_ps, min_ps, seeds, row_ids, strict=True)
    rows = zip(prompts, budgets, drawn, strict=True)
    for row, (prompt, budget, sampling) in enumerate(rows):
        if not _is_list(prompt):
            raise TypeError(f"prompts[{row}]={prompt!r}: must be a list of token ids")
        if len(prompt) == 0:
            raise ValueError(f"prompts[{row}] is empty: must hold at least one token id")
        limit = config.max_position_embeddings
        if len(prompt) + budget > limit:
            raise ValueError(
                f"prompts[{row}] has {len(prompt)} tokens and max_new_tokens={budget}: together "
                f"they must be at most the target's max_position_embeddings={limit}"
            )
        ids = (_token(config, f"prompts[{row}][{i}]", token) for i, token in enumerate(prompt))
        requests.append(Request(tuple(ids), budget, float(confidence_threshold), stops, *sampling))
    return requests


def check_request(config: TargetConfig, request: Request) -> Request:
    """One row by itself, in its usual types; raises as `check_requests` does."""
    if not isinstance(request, Request):
        raise TypeError(f"{request!r} is a {type(request).__name__}: must be a Request")
    (checked,) = check_requests(
        config,
        [request.prompt],
        [request.max_new_tokens],
        request.confidence_threshold,
        request.stop_token_ids,
        temperature=[request.temperature],
        top_k=[request.top_k],
        top_p=[request.top_p],
        min_p=[request.min_p],
        seed=[request.seed],
        row_ids=[request.row_id],
    )
    return checked


def check_settings(
    target: Target,
    draft: Draft | None,
    schedule: str,
    block_size: int | None,
    pruning_strategy: str,
    sampling: str = "coupled",
    attention: str = "reference",
) -> int:
    """The block size to decode with: see `block_size_of`.

    Raises:
        ValueError: an unknown name, a missing draft, a draft for another target, or a block size
            under 2.
        TypeError: a block size that is no integer.
    """
    _one_of("schedule", schedule, SCHEDULES)
    _one_of("pruning_strategy", pruning_strategy, PRUNING_STRATEGIES)
    _one_of("sampling", sampling, SAMPLING_RULES)
    _one_of("attention", attention, BACKENDS)
    if block_size is not None:
        block_size = integer("block_size", block_size)
        if block_size < 2:
            raise ValueError(
                f"block_size={block_size}: must be at least 2 (one bonus and one draft)"
            )
    if draft is None and schedule not in ("ar", "flex"):
        raise ValueError(
            f'draft=None: schedule="{schedule}" needs one; only "ar" and "flex" decode without'
        )
    if draft is not None and schedule != "ar":
        check_draft_fits(draft, target.config)
        dtype = draft.params["mask_embedding"].dtype
        if dtype != target.dtype:
            raise ValueError(
                f"the draft's weights are {dtype}: must be {target.dtype}, as the target's are"
            )
    return block_size_of(draft, schedule, block_size)


def block_size_of(draft: Draft | None, schedule: str, block_size: int | None) -> int:
    """n to decode with: 1 for "ar" or without a draft, else what was asked for or the draft's."""
    if schedule == "ar" or draft is None:
        return 1
    return draft.config.block_size if block_size is None else block_size


# Keys of random streams are made of 32-bit numbers.
_LARGEST_SEED = 2**32 - 1


def _integers(
    field: str, value: int | Sequence[int], count: int, largest: int = 2**31 - 1
) -> list[int]:
    """One integer of 0..`largest` for each of `count` rows."""
    found = [integer(name, x) for name, x in _per_row(field, value, count)]
    for row, number in enumerate(found):
        if not 0 <= number <= largest:
            right = "0 or more" if number < 0 else f"at most {largest}"
            raise ValueError(f"{field}={number} (row {row}): must be {right}")
    return found


def _numbers(
    field: str,
    value: float | Sequence[float],
    count: int,
    right: str,
    is_right: Callable[[float], bool],
) -> list[float]:
    """One finite number for each of `count` rows."""
    found = []
    for name, x in _per_row(field, value, count):
        if isinstance(x, bool) or not isinstance(x, numbers.Real):
            raise TypeError(f"{name}={x!r}: must be a number")
        try:
            number = float(x)
        except OverflowError:  # An integer of hundreds of digits.
            number = math.inf
        if abs(number) < np.finfo(np.float32).tiny:
            number = 0.0  # As it is to devices.
        if not (math.isfinite(number) and is_right(number)):
            raise ValueError(f"{name}={x}: must be {right}")
        found.append(number)
    return found


def _per_row(field: str, value: Any, count: int) -> list[tuple[str, Any]]:
    """A name and a value for each row, from one value for all or a list of them."""
    if not _is_list(value):
        return [(field, value)] * count
    if len(value) != count:
        raise ValueError(
            f"{field} has {len(value)} entries: must be one number, or one for each of the "
            f"{count} prompts"
        )
    return [(f"{field}[{row}]", x) for row, x in enumerate(value)]


def _token(config: TargetConfig, field: str, token: Any) -> int:
    token = integer(field, token)
    if not 0 <= token < config.vocab_size:
        raise ValueError(
            f"{field}={token}: must be a token id between 0 and {config.vocab_size - 1}"
        )
    return token


def integer(field: str, value: Any) -> int:
    """The value as an int; TypeError that names the field if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{field}={value!r}: must be an integer") from None


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether the value is an ordered collection; a text or an array of no dimension is none."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return hasattr(value, "__array__") and np.ndim(value) > 0


def _one_of(field: str, value: Any, names: tuple[str, ...]) -> None:
    if value not in names:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(names)}")
