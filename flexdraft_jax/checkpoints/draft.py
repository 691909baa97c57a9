"""The published draft format: a Hugging Face directory with the draft's own tensors.

`config.json` is the target's, cut down to the draft layers, plus the draft's fields. The tensors
are the attention projections of the draft layers, the mask embedding and the calibration MLP
("anchor bias" in the published names). FlexDraft paper, arXiv 2605.20022.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from flexdraft_jax.checkpoints import fields, hf, weights
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf, target_config_to_hf
from flexdraft_jax.checkpoints.paths import existing_directory, read_json
from flexdraft_jax.checkpoints.safetensors import SafetensorsDirectory, parse_dtype
from flexdraft_jax.config import DraftConfig, TargetConfig, check_kind
from flexdraft_jax.models.draft import Draft, check_num_draft_layers, draft_shapes, draft_shardings
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import check_is_mesh, mesh_of

DRAFT_RULES = (
    weights.Rule("mask_embedding", "mask_embedding"),
    weights.Rule(
        r"layers_(\d+)/([qkvo]_proj)/kernel", r"layers.\1.self_attn.\2.weight", transpose=True
    ),
    weights.Rule(r"layers_(\d+)/([qkvo]_proj)/bias", r"layers.\1.self_attn.\2.bias"),
    weights.Rule(r"layers_(\d+)/([qk]_norm)/scale", r"layers.\1.self_attn.\2.weight"),
    weights.Rule("calibration/hidden/kernel", "anchor_bias_mlp.0.weight", transpose=True),
    weights.Rule("calibration/hidden/bias", "anchor_bias_mlp.0.bias"),
    weights.Rule("calibration/output/kernel", "anchor_bias_mlp.2.weight", transpose=True),
    weights.Rule("calibration/output/bias", "anchor_bias_mlp.2.bias"),
)

# In published files, and never used: mask tokens go through the target's own norms and MLPs.
_UNUSED_TENSORS = (
    r"layers\.\d+\.mlp\..*",
    r"layers\.\d+\.[a-z_]+_layernorm\.weight",
    r"norm\.weight",
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)

# The first is written; the second is the name in the checkpoint that its authors released.
_DRAFT_KEYS = ("flexdraft_config", "dflash_config")

# What a draft and its target must share: projections of these shapes, in the same family, and
# the rotary tables, which the draft takes from the target.
_SHARED_FIELDS = (
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "vocab_size",
    "rope_theta",
    "local_rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "qkv_bias",
    "o_bias",
    "qk_norm",
    "query_pre_attn_scalar",
)


def load_draft(
    directory: str | os.PathLike[str],
    target: Target,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
) -> Draft:
    """Loads draft parameters in the published format.

    Args:
        directory: holds config.json and model.safetensors; gs://.. too.
        target: the model that the draft was trained for.
        dtype: "float32" or "bfloat16"; None takes the target's.
        mesh: to spread the weights over; None takes the target's.

    Raises:
        ValueError: the directory or a file is missing or broken, the draft was made for another
            target or cannot be used as configured, tensors are missing, unexpected or of another
            shape (all of them are listed), weights are NaN or infinite, or do not divide among
            the mesh's devices.
        TypeError: the target or the mesh is none, or the directory no path.
    """
    check_kind("target", target, Target)
    check_is_mesh(mesh)
    draft_dtype = np.dtype(target.dtype) if dtype is None else parse_dtype(dtype)
    config = read_draft_config(directory, target.config)
    checkpoint = SafetensorsDirectory(directory)
    shapes = draft_shapes(target.config, config, draft_dtype)
    mesh = mesh_of(target.params) if mesh is None else mesh
    places = None if mesh is None else draft_shardings(target.config, config, mesh)
    weights.check_tensors(checkpoint, shapes, DRAFT_RULES, _UNUSED_TENSORS)
    readers = weights.parameter_readers(checkpoint, shapes, DRAFT_RULES, draft_dtype)
    return Draft(config=config, params=weights.read_parameters(readers, places))


def read_draft_config(directory: str | os.PathLike[str], target: TargetConfig) -> DraftConfig:
    """Reads config.json, but no weights.

    Raises:
        ValueError: as `load_draft`, but for weights.
    """
    path = existing_directory(directory) / hf.CONFIG_FILE
    config = read_json(path)
    try:
        return draft_config_from_hf(config, target)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_draft(
    draft: Draft,
    target: Target,
    directory: str | os.PathLike[str],
    *,
    dtype: str | None = None,
) -> None:
    """Writes draft parameters in the published format; `load_draft` reads them bit for bit.

    Args:
        draft: the parameters.
        target: the model that they belong to.
        directory: made if it is not there; files of the same names are replaced.
        dtype: "float32" or "bfloat16" to store; None stores the parameters as they are.

    Raises:
        ValueError: the draft does not fit the target, or weights are NaN or infinite. Nothing is
            written then.
    """
    check_kind("draft", draft, Draft)
    check_kind("target", target, Target)
    hf_config = draft_config_to_hf(draft.config, target.config)
    tensors = weights.named_tensors(
        draft.params,
        draft_shapes(target.config, draft.config, np.dtype(np.float32)),
        DRAFT_RULES,
        None if dtype is None else parse_dtype(dtype),
    )
    hf_config["dtype"] = str(tensors["mask_embedding"].dtype)
    hf.write_directory(directory, hf_config, tensors)


def draft_config_from_hf(config: Mapping[str, Any], target: TargetConfig) -> DraftConfig:
    """Reads a draft's `config.json` and holds it against the target's config.

    Raises:
        ValueError: made for another target, or not usable as configured.
    """
    own = _draft_fields(config)
    if own.get("enable_anchor_bias_logits", True) is not True:
        raise ValueError(
            f"enable_anchor_bias_logits={own['enable_anchor_bias_logits']!r}: drafts without "
            "calibration are not supported; must be true"
        )
    _require_same_target(config, target)
    num_draft_layers = fields.integer(config, "num_hidden_layers")
    last_layers = list(range(target.num_layers - num_draft_layers, target.num_layers))
    if num_draft_layers > target.num_layers or own.get("target_layer_ids") != last_layers:
        raise ValueError(
            f"target_layer_ids={own.get('target_layer_ids')!r}: must be the last "
            f"num_hidden_layers={num_draft_layers} of the target's {target.num_layers} layers"
            + (f", {last_layers}" if num_draft_layers <= target.num_layers else "")
        )
    return DraftConfig(
        num_draft_layers=num_draft_layers,
        block_size=fields.integer(config, "block_size", minimum=2),
        calibration_rank=fields.integer(own, "anchor_bias_rank"),
    )


def draft_config_to_hf(config: DraftConfig, target: TargetConfig) -> dict[str, Any]:
    """The contents of a draft's `config.json`.

    Raises:
        ValueError: more draft layers than the target has layers, or a target that its family's
            config.json has no words for.
    """
    check_num_draft_layers(config, target)
    first = target.num_layers - config.num_draft_layers
    hf_config = target_config_to_hf(
        dataclasses.replace(
            target,
            num_layers=config.num_draft_layers,
            layer_windows=target.layer_windows[first:],
            tie_word_embeddings=False,
        )
    )
    return hf_config | {
        "architectures": ["FlexDraftBiasModel"],
        "num_target_layers": target.num_layers,
        "block_size": config.block_size,
        _DRAFT_KEYS[0]: {
            "target_layer_ids": list(range(first, target.num_layers)),
            "enable_anchor_bias_logits": True,
            "anchor_bias_rank": config.calibration_rank,
            # The published inference code fills unused places with this token; any would do.
            "mask_token_id": target.vocab_size - 1,
        },
    }


def _draft_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The dict of the draft's own fields, under either of its names."""
    found = [(key, value) for key in _DRAFT_KEYS if (value := fields.mapping(config, key))]
    if not found:
        raise ValueError(
            f"{' or '.join(_DRAFT_KEYS)} is missing: must be there; is this a draft's directory?"
        )
    if any(value != found[0][1] for _, value in found):
        raise ValueError(f"{' and '.join(_DRAFT_KEYS)} differ: only one must be there")
    return found[0][1]


def _require_same_target(config: Mapping[str, Any], target: TargetConfig) -> None:
    """ValueError that lists in what the draft's target was another one."""
    if config.get("model_type") != target.model_type:
        differences = [f"model_type={config.get('model_type')!r} (target: {target.model_type!r})"]
    else:
        # The config of a draft is that of its target, with fewer layers.
        made_for = target_config_from_hf(config)
        differences = [
            f"{name}={getattr(made_for, name)!r} (target: {getattr(target, name)!r})"
            for name in _SHARED_FIELDS
            if getattr(made_for, name) != getattr(target, name)
        ]
        num_target_layers = fields.integer(config, "num_target_layers")
        if num_target_layers != target.num_layers:
            differences.append(
                f"num_target_layers={num_target_layers} (target: {target.num_layers})"
            )
    if differences:
        raise ValueError(f"the draft was made for another target: {', '.join(differences)}")
