"""How much arithmetic a training step takes, and how much of it devices can do: for the MFU.

Model FLOPs: what the mathematics needs, so work that is done twice to save memory counts once, and
keys that a mask hides count as if half of a row's were seen. A product of matrices [a, b] and
[b, c] is 2abc.
"""

from __future__ import annotations

from flexdraft_jax.config import DraftConfig, TargetConfig
from flexdraft_jax.parallel.devices import find_device


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device by its `device_kind`; None for one that the table does not know."""
    device = find_device(device_kind)
    return None if device is None else device.flops


def draft_step_flops(
    target: TargetConfig,
    draft: DraftConfig,
    *,
    batch_size: int,
    length: int,
    anchors: int,
    all_experts: bool = False,
) -> float:
    """Of one step of a drafter's training: the frozen pass, then mask groups there and back.

    Args:
        target: the frozen model.
        draft: D, n and r.
        batch_size: B rows.
        length: T, tokens of a row.
        anchors: A, mask groups of a row.
        all_experts: count what the step does, which is all experts, not what a token needs of them.
    """
    t, n = target, draft.block_size
    head, heads = t.vocab_size * t.hidden_size, t.num_heads * t.head_dim
    calibration = draft.calibration_weights(t)
    layer_weights = t.layer_weights if all_experts else t.active_layer_weights
    tokens, masks, slots = (
        batch_size * count for count in (length, anchors * n, anchors * (n - 1))
    )

    clean = t.num_layers * tokens * (2 * layer_weights + 4 * heads * length / 2)
    # Forward, and backward to the layer's input; weights get a gradient in attention alone. Keys
    # and values of clean tokens are constants.
    attended = 2 * 4 * heads * length / 2 + 3 * 4 * heads * n
    weights = 4 * layer_weights + 2 * t.attention_weights
    group = draft.num_draft_layers * masks * (weights + attended)
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
    layers = config.num_layers * (2 * config.active_layer_weights + attention)
    return 3 * batch_size * length * (layers + 2 * config.vocab_size * config.hidden_size)
