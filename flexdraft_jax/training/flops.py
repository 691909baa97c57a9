"""How much arithmetic a training step takes, and how much of it devices can do: for the MFU.

Model FLOPs: what the mathematics needs, so work that is done twice to save memory counts once, and
keys that a mask hides count as if half of a row's were seen. A product of matrices [a, b] and
[b, c] is 2abc.
"""

from __future__ import annotations

from flexdraft_jax.config import DraftConfig, TargetConfig

# Dense bfloat16 (T4: float16) FLOP/s of one JAX device, from the vendors' data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "Tesla T4": 65e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device by its `device_kind`; None for one that the table does not know."""
    # GPUs add memory and socket to their name: "NVIDIA A100-SXM4-80GB".
    kind = next((name for name in _PEAKS if name in device_kind and "TPU" not in name), device_kind)
    return _PEAKS.get(kind)


def draft_step_flops(
    target: TargetConfig, draft: DraftConfig, *, batch_size: int, length: int, anchors: int
) -> float:
    """Of one step of a drafter's training: the frozen pass, then mask groups there and back.

    Args:
        target: the frozen model.
        draft: D, n and r.
        batch_size: B rows.
        length: T, tokens of a row.
        anchors: A, mask groups of a row.
    """
    t, n = target, draft.block_size
    head, heads = t.vocab_size * t.hidden_size, t.num_heads * t.head_dim
    calibration = draft.calibration_rank * (2 * t.hidden_size + t.vocab_size)
    tokens, masks, slots = (
        batch_size * count for count in (length, anchors * n, anchors * (n - 1))
    )

    clean = t.num_layers * tokens * (2 * _layer(t) + 4 * heads * length / 2)
    # Forward, and backward to the layer's input; weights get a gradient in attention alone. Keys
    # and values of clean tokens are constants.
    attended = 2 * 4 * heads * length / 2 + 3 * 4 * heads * n
    group = draft.num_draft_layers * masks * (4 * _layer(t) + 2 * _attention(t) + attended)
    # The target's logits forward, the draft's forward and backward to the hidden states.
    return clean + group + slots * (6 * head + 6 * calibration)


def target_step_flops(config: TargetConfig, *, batch_size: int, length: int) -> float:
    """Of one step of a target's own training, forward and backward.

    Args:
        config: the model.
        batch_size: B rows.
        length: T, tokens of a row.
    """
    attention = 4 * config.num_heads * config.head_dim * length / 2
    layers = config.num_layers * (2 * _layer(config) + attention)
    return 3 * batch_size * length * (layers + 2 * config.vocab_size * config.hidden_size)


def _attention(config: TargetConfig) -> int:
    """Weights of the four projections of a layer."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * config.head_dim * heads


def _layer(config: TargetConfig) -> int:
    return _attention(config) + 3 * config.hidden_size * config.intermediate_size
