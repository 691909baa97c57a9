"""A batch of packed rows, as training steps take it."""

from __future__ import annotations

import jax
from flax import struct


@struct.dataclass
class Rows:
    """Packed documents; see :class:`flexdraft_jax.data.pipeline.PackedRows`.

    Attributes:
        tokens: [B, T] int32.
        segment_ids: [B, T] int32, which document a token belongs to, 0 at padding.
        positions: [B, T] int32, counted from the start of each document.
        response_mask: [B, T] bool, tokens that the assistant writes.
    """

    tokens: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    response_mask: jax.Array
