"""What a caller asks for, checked before anything is compiled."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from flexdraft_jax.config import TargetConfig, check_kind
from flexdraft_jax.decoding.confidence import PRUNING_STRATEGIES
from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.decoding.sampling import SAMPLING_RULES
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
        row_id: rows of one seed are independent where their ids differ. It is 0 unless given, so
            requests of one seed share their random numbers until they get ids of their own.
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
    check_kind("target", target, Target)
    check_kind("draft", draft, Draft | None)


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
    count = len(prompts)
    columns = {
        "prompt": [(f"prompts[{row}]", prompt) for row, prompt in enumerate(prompts)],
        "confidence_threshold": [("confidence_threshold", confidence_threshold)] * count,
        "stop_token_ids": [("stop_token_ids", stop_token_ids)] * count,
        "max_new_tokens": _per_row("max_new_tokens", max_new_tokens, count),
        "temperature": _per_row("temperature", temperature, count),
        "top_k": _per_row("top_k", top_k, count),
        "top_p": _per_row("top_p", top_p, count),
        "min_p": _per_row("min_p", min_p, count),
        "seed": _per_row("seed", seed, count),
        "row_id": _per_row("row_ids", range(count) if row_ids is None else row_ids, count),
    }
    rows = zip(*columns.values(), strict=True)
    return [_checked(config, dict(zip(columns, row, strict=True))) for row in rows]


def check_request(config: TargetConfig, request: Request) -> Request:
    """One row by itself, in its usual types; raises as `check_requests` does."""
    if not isinstance(request, Request):
        raise TypeError(f"{request!r} is a {type(request).__name__}: must be a Request")
    return _checked(config, {name: (name, value) for name, value in vars(request).items()})


def _checked(config: TargetConfig, fields: Mapping[str, tuple[str, Any]]) -> Request:
    """The request of these fields; each has the name that its caller knows it by, and a value."""
    name, prompt = fields["prompt"]
    if not _is_list(prompt):
        raise TypeError(f"{name}={prompt!r}: must be a list of token ids")
    if len(prompt) == 0:
        raise ValueError(f"{name} is empty: must hold at least one token id")
    budget = _count(*fields["max_new_tokens"])
    limit = config.max_position_embeddings
    if len(prompt) + budget > limit:
        raise ValueError(
            f"{name} has {len(prompt)} tokens and max_new_tokens={budget}: together "
            f"they must be at most the target's max_position_embeddings={limit}"
        )
    stops_name, stops = fields["stop_token_ids"]
    stops = () if stops is None else stops
    if not _is_list(stops):
        raise TypeError(f"{stops_name}={stops!r}: must be None or a list of token ids")
    share = "between 0 and 1", lambda x: 0 <= x <= 1
    return Request(
        prompt=_tokens(config, name, prompt),
        max_new_tokens=budget,
        confidence_threshold=_number(*fields["confidence_threshold"], *share),
        stop_token_ids=_tokens(config, stops_name, stops),
        temperature=_number(
            *fields["temperature"],
            f"0 or more, and at most {_LARGEST_FLOAT:.4g}",
            lambda x: 0 <= x <= _LARGEST_FLOAT,
        ),
        top_k=_count(*fields["top_k"]),
        top_p=_number(*fields["top_p"], "above 0 and at most 1", lambda x: 0 < x <= 1),
        min_p=_number(*fields["min_p"], *share),
        seed=_count(*fields["seed"], _LARGEST_SEED),
        row_id=_count(*fields["row_id"], _LARGEST_SEED),
    )


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


# Of float32, as Python's own: one of NumPy's would round what it is compared with.
_SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
# That devices count to.
_LARGEST = 2**31 - 1
# Keys of random streams are made of 32-bit numbers.
_LARGEST_SEED = 2**32 - 1


def _count(name: str, value: Any, largest: int = _LARGEST) -> int:
    """An integer of 0..`largest`."""
    number = integer(name, value)
    if not 0 <= number <= largest:
        right = "0 or more" if number < 0 else f"at most {largest}"
        raise ValueError(f"{name}={number}: must be {right}")
    return number


def _number(name: str, value: Any, right: str, is_right: Callable[[float], bool]) -> float:
    """A finite number, also one of an array's."""
    if hasattr(value, "__array__") and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}: must be a number")
    try:
        number = float(value)
    except OverflowError:  # An integer of hundreds of digits.
        number = math.inf
    if abs(number) < _SMALLEST_FLOAT:
        number = 0.0  # As it is to devices.
    if not (math.isfinite(number) and is_right(number)):
        raise ValueError(f"{name}={value}: must be {right}")
    return number


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


def _tokens(config: TargetConfig, name: str, tokens: Sequence[Any]) -> tuple[int, ...]:
    found = tuple(integer(f"{name}[{i}]", token) for i, token in enumerate(tokens))
    for i, token in enumerate(found):
        if not 0 <= token < config.vocab_size:
            raise ValueError(
                f"{name}[{i}]={token}: must be a token id between 0 and {config.vocab_size - 1}"
            )
    return found


def integer(field: str, value: Any) -> int:
    """The value as an int; TypeError that names the field if it is none."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{field}={value!r}: must be an integer") from None


def at_least_one(field: str, value: Any) -> int:
    """The value as an int; ValueError or TypeError that names the field if it is out of range."""
    number = integer(field, value)
    if not 1 <= number <= _LARGEST:
        raise ValueError(f"{field}={number}: must be at least 1 and at most {_LARGEST}")
    return number


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether the value is an ordered collection; a text or an array of no dimension is none."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return hasattr(value, "__array__") and np.ndim(value) > 0


def _one_of(field: str, value: Any, names: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{field}={value!r}: must be one of {', '.join(names)}")
