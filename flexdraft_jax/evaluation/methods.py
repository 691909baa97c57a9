"""Ways to decode, as the benchmark calls them."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from flexdraft_jax.decoding.batch import Decoding, start
from flexdraft_jax.decoding.costs import Profile
from flexdraft_jax.decoding.requests import block_size_of, check_requests
from flexdraft_jax.evaluation.draft_record import DraftRecord, watch_drafts
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

Tokens = list[list[int]]
Batch = Sequence[Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: for the report.
        block_size: n; 1 where nothing is drafted.
        decode: a batch of prompts -> new tokens and all acceptance lengths.
        first_token: a batch of prompts -> anything, as soon as each has its first token; None where
            that is not asked for.
        watch: a batch of prompts -> what became of every draft; None where nothing is drafted.
        same_tokens: whether it should give the tokens of "ar"; another implementation that draws
            random tokens does not.
        compiles: whether the first call compiles.
    """

    name: str
    block_size: int
    decode: Callable[[Batch], tuple[Tokens, list[list[int]]]]
    first_token: Callable[[Batch], object] | None = None
    watch: Callable[[Batch], DraftRecord] | None = None
    same_tokens: bool = True
    compiles: bool = True

    @property
    def label(self) -> str:
        """Different for all methods of a run."""
        return f"{self.name}, n={self.block_size}"


def schedule_method(
    target: Target,
    draft: Draft | None,
    schedule: str,
    *,
    max_new_tokens: int,
    block_size: int | None = None,
    confidence_threshold: float = 0.0,
    stop_token_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    attention: str = "reference",
    forced_acceptance: float | None = None,
    profile: Profile | None = None,
    noise_of_prompts: bool = False,
    **row_sampling: Any,
) -> Method:
    """One of our schedules; the arguments are those of `generate` and `start`.

    But for `noise_of_prompts`: whether another prompt makes other noise. If not, it is that of the
    row in its batch, and all batches have the same luck.
    """

    def begin(prompts: Batch) -> Decoding:
        row_ids = [_row_id(row, prompt) for row, prompt in enumerate(prompts)]
        requests = check_requests(
            target.config,
            prompts,
            max_new_tokens,
            confidence_threshold,
            stop_token_ids,
            row_ids=row_ids if noise_of_prompts else None,
            **row_sampling,
        )
        return start(
            target,
            draft,
            requests,
            schedule,
            block_size,
            sampling=sampling,
            attention=attention,
            forced_acceptance=forced_acceptance,
            profile=profile,
        )

    def decode(prompts: Batch) -> tuple[Tokens, list[list[int]]]:
        decoding = begin(prompts)
        decoding.advance(max_new_tokens)
        out = decoding.output()
        return out.tokens, out.acceptance_lengths

    def first_token(prompts: Batch) -> object:
        return jax.block_until_ready(begin(prompts).state.tokens)

    def watch(prompts: Batch) -> DraftRecord:
        return watch_drafts(begin(prompts))

    return Method(
        schedule,
        block_size_of(draft, schedule, block_size),
        decode,
        first_token,
        None if schedule == "ar" else watch,
    )


def _row_id(row: int, prompt: Sequence[int]) -> int:
    """Another one for each prompt, and for each row that has the same prompt."""
    return zlib.crc32(np.asarray(prompt, np.uint32).tobytes(), row)
