"""What a caller asks for, checked before anything is compiled."""

import dataclasses
import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.confidence import PRUNING_STRATEGIES
from flexdraft_jax.decoding.steps import SCHEDULES
from flexdraft_jax.models.draft import Draft, check_draft_fits
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Request:
    """One row.

    Attributes:
        prompt: token ids, at least one.
        budget: tokens to emit at most.
        confidence_threshold: drafts less sure than this are not verified; 0 verifies all.
        stop_token_ids: tokens that end the row, once emitted.
    """

    prompt: tuple[int, ...]
    budget: int
    confidence_threshold: float = 0.01
    stop_token_ids: tuple[int, ...] = ()


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
) -> list[Request]:
    """One `Request` per prompt.

    Raises:
        ValueError: no prompts, an empty prompt, an id outside the vocabulary, a negative budget,
            budgets that don't match the prompts, a row longer than the target's context, or a
            threshold outside 0..1.
        TypeError: something that should be an integer or a list of integers is neither.
    """
    if not _is_list(prompts):
        raise TypeError(f"prompts={prompts!r}: must be a list of lists of token ids")
    if len(prompts) == 0:
        raise ValueError(f"prompts={prompts!r}: must be a non-empty list of lists of token ids")
    if not isinstance(confidence_threshold, numbers.Real):
        raise TypeError(f"confidence_threshold={confidence_threshold!r}: must be a number")
    if not 0 <= confidence_threshold <= 1:  # false for nan as well
        raise ValueError(f"confidence_threshold={confidence_threshold}: must be between 0 and 1")
    budgets = _budgets(max_new_tokens, len(prompts))
    stop_token_ids = () if stop_token_ids is None else stop_token_ids
    if not _is_list(stop_token_ids):
        raise TypeError(f"stop_token_ids={stop_token_ids!r}: must be None or a list of token ids")
    stops = tuple(
        _token(config, f"stop_token_ids[{i}]", token) for i, token in enumerate(stop_token_ids)
    )
    requests = []
    for row, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True)):
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
        requests.append(Request(tuple(ids), budget, float(confidence_threshold), stops))
    return requests


def check_settings(
    target: Target,
    draft: Draft | None,
    schedule: str,
    block_size: int | None,
    pruning_strategy: str,
) -> int:
    """The block size to decode with: 1 for "ar", else what was asked for or the draft's own.

    Raises:
        ValueError: an unknown name, a missing draft, a draft for another target, or a block size
            under 2.
        TypeError: a block size that is no integer.
    """
    _one_of("schedule", schedule, SCHEDULES)
    _one_of("pruning_strategy", pruning_strategy, PRUNING_STRATEGIES)
    if block_size is not None:
        block_size = integer("block_size", block_size)
        if block_size < 2:
            raise ValueError(
                f"block_size={block_size}: must be at least 2 (one bonus and one draft)"
            )
    if schedule != "ar":
        if draft is None:
            raise ValueError(
                f'draft=None: schedule="{schedule}" needs one; only "ar" decodes without'
            )
        check_draft_fits(draft, target.config)
        dtype = draft.params["mask_embedding"].dtype
        if dtype != target.dtype:
            raise ValueError(
                f"the draft's weights are {dtype}: must be {target.dtype}, as the target's are"
            )
    return block_size_of(draft, schedule, block_size)


def block_size_of(draft: Draft | None, schedule: str, block_size: int | None) -> int:
    """n that a schedule decodes with: 1 for "ar", else what was asked for or the draft's own."""
    if schedule == "ar" or draft is None:
        return 1
    return draft.config.block_size if block_size is None else block_size


def _budgets(max_new_tokens: int | Sequence[int], num_rows: int) -> list[int]:
    if _is_list(max_new_tokens):
        budgets = [integer(f"max_new_tokens[{i}]", x) for i, x in enumerate(max_new_tokens)]
        if len(budgets) != num_rows:
            raise ValueError(
                f"max_new_tokens has {len(budgets)} entries: must be one integer, or one for each "
                f"of the {num_rows} prompts"
            )
    else:
        budgets = [integer("max_new_tokens", max_new_tokens)] * num_rows
    for row, budget in enumerate(budgets):
        if budget < 0:
            raise ValueError(f"max_new_tokens={budget} (row {row}): must be 0 or more")
    return budgets


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
