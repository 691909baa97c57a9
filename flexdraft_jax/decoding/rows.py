"""Requests as arrays of a batch's rows, and what the rows hold as answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sampling import RowSampling
from flexdraft_jax.decoding.sizes import bucket
from flexdraft_jax.decoding.state import DecodeState
from flexdraft_jax.parallel.processes import to_host


@dataclasses.dataclass(frozen=True)
class GenerateOutput:
    """What a batch was answered, one entry per row.

    Attributes:
        tokens: new token ids, up to the stop token (included) or the budget.
        acceptance_lengths: a + 1 for each decoding step the row took part in. Not cut at a stop
            token or at the budget, so the sum can exceed the number of new tokens; prefill, which
            gives the first token, is no step.
        verify_lengths: v for each of those steps.
        finish_reasons: "stop" or "length"; "running" only in what `stream` yields on the way, and
            "error" in the engine alone.
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


# By the values of `DecodeState.finish_reason`. A row that is still reading its prompt is running to
# whoever waits for it.
_FINISH_REASONS = ("running", "stop", "length", "running", "error")


def nan_message(tokens: Sequence[int]) -> str:
    """What went wrong in a row behind these tokens."""
    return f"the target's logits are NaN from token {len(tokens)} on; its activations overflow"


def read_output(state: DecodeState, wanted: slice) -> GenerateOutput:
    """What each row has emitted so far; waits for the device.

    A row without a next token is finished with the reason "error".

    Args:
        state: of the batch.
        wanted: rows to give out.
    """
    small = (
        state.tokens,
        state.num_emitted,
        state.acceptance_lengths,
        state.verify_lengths,
        state.num_steps,
        state.finish_reason,
    )
    tokens, emitted, acceptance, verify, steps, reason = (array[wanted] for array in to_host(small))
    return GenerateOutput(
        tokens=[row[:k].tolist() for row, k in zip(tokens, emitted, strict=True)],
        acceptance_lengths=[r[:k].tolist() for r, k in zip(acceptance, steps, strict=True)],
        verify_lengths=[r[:k].tolist() for r, k in zip(verify, steps, strict=True)],
        finish_reasons=[_FINISH_REASONS[int(r)] for r in reason],
    )


def row_settings(requests: Sequence[Request], num_stops: int = 4) -> dict[str, Any]:
    """The requests' fields as arrays, one entry per row: arguments of `init_state`.

    Args:
        requests: one per row.
        num_stops: M, at least; more where a request has more stop tokens.
    """
    stops = [r.stop_token_ids for r in requests]
    num_stops = max(num_stops, bucket(max(map(len, stops)), smallest=4))
    return {
        "budget": _column(requests, "max_new_tokens", np.int32),
        "stop_token_ids": padded(stops, -1, num_stops),
        "confidence_threshold": _column(requests, "confidence_threshold", np.float32),
        "sampling": row_sampling(requests),
    }


def row_sampling(requests: Sequence[Request]) -> RowSampling:
    """How the requests' tokens are drawn, one entry per row."""
    return RowSampling(
        temperature=_column(requests, "temperature", np.float32),
        top_k=_column(requests, "top_k", np.int32),
        top_p=_column(requests, "top_p", np.float32),
        min_p=_column(requests, "min_p", np.float32),
        seed=_column(requests, "seed", np.uint32),
        row_id=_column(requests, "row_id", np.uint32),
    )


def _column(requests: Sequence[Request], field: str, dtype: type) -> Any:
    return np.array([getattr(r, field) for r in requests], dtype)


def padded(rows: Sequence[Sequence[int]], fill: int, size: int) -> np.ndarray:
    """Rows of tokens as one array [B, size]."""
    out = np.full((len(rows), size), fill, np.int32)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out
