"""Targets and their tokenizers: Hugging Face directories in and out."""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from flexdraft_jax.checkpoints import weights
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf, target_config_to_hf
from flexdraft_jax.checkpoints.paths import (
    BucketPath,
    existing_directory,
    input_path,
    read_json,
)
from flexdraft_jax.checkpoints.safetensors import (
    SafetensorsDirectory,
    parse_dtype,
    write_json,
    write_safetensors,
)
from flexdraft_jax.config import TargetConfig, check_kind
from flexdraft_jax.models.target import Target, target_shapes, target_shardings
from flexdraft_jax.parallel.mesh import check_is_mesh

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG_FILE = "config.json"
_TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja")
GENERATION_CONFIG_FILE = "generation_config.json"

_COMMON_RULES = (
    weights.Rule("embed/embedding", "model.embed_tokens.weight"),
    weights.Rule(r"layers_(\d+)/input_norm/scale", r"model.layers.\1.input_layernorm.weight"),
    weights.Rule(
        r"layers_(\d+)/attention/([qkvo]_proj)/kernel",
        r"model.layers.\1.self_attn.\2.weight",
        transpose=True,
    ),
    weights.Rule(
        r"layers_(\d+)/attention/([qkvo]_proj)/bias", r"model.layers.\1.self_attn.\2.bias"
    ),
    weights.Rule(
        r"layers_(\d+)/attention/([qk]_norm)/scale", r"model.layers.\1.self_attn.\2.weight"
    ),
    weights.Rule(
        r"layers_(\d+)/post_attention_norm/scale",
        r"model.layers.\1.post_attention_layernorm.weight",
    ),
    weights.Rule(
        r"layers_(\d+)/mlp/(gate_proj|up_proj|down_proj)/kernel",
        r"model.layers.\1.mlp.\2.weight",
        transpose=True,
    ),
    weights.Rule(
        r"layers_(\d+)/mlp/(gate_proj|up_proj|down_proj)/bias", r"model.layers.\1.mlp.\2.bias"
    ),
    weights.Rule("final_norm/scale", "model.norm.weight"),
    weights.Rule("lm_head/kernel", "lm_head.weight", transpose=True),
)

# What families store otherwise. These rules come first, so that they win.
_FAMILY_RULES = {
    "gemma3_text": tuple(
        weights.Rule(rf"layers_(\d+)/{ours}/scale", rf"model.layers.\1.{theirs}.weight")
        for ours, theirs in (
            ("attention_output_norm", "post_attention_layernorm"),
            ("post_attention_norm", "pre_feedforward_layernorm"),
            ("mlp_output_norm", "post_feedforward_layernorm"),
        )
    ),
    "qwen3_moe": (
        weights.Rule(
            r"layers_(\d+)/mlp/router", r"model.layers.\1.mlp.gate.weight", transpose=True
        ),
        weights.Rule(
            r"layers_(\d+)/mlp/(gate_proj|up_proj|down_proj)",
            r"model.layers.\1.mlp.experts.{}.\2.weight",
            transpose=True,
        ),
    ),
    "phi3": (
        *(
            weights.Rule(
                rf"layers_(\d+)/attention/{part}_proj/kernel",
                r"model.layers.\1.self_attn.qkv_proj.weight",
                transpose=True,
            )
            for part in "qkv"
        ),
        *(
            weights.Rule(
                rf"layers_(\d+)/mlp/{part}_proj/kernel",
                r"model.layers.\1.mlp.gate_up_proj.weight",
                transpose=True,
            )
            for part in ("gate", "up")
        ),
    ),
}

# Tables that old exporters wrote beside the weights; they follow from the config.
_DERIVED_TENSORS = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
_LM_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"


def target_rules(config: TargetConfig) -> tuple[weights.Rule, ...]:
    """How the config's family names and stores its weights."""
    return _FAMILY_RULES.get(config.model_type, ()) + _COMMON_RULES


def load_target(
    directory: str | os.PathLike[str], *, dtype: str = "float32", mesh: Mesh | None = None
) -> Target:
    """Loads a model of a supported family from a Hugging Face directory.

    Args:
        directory: holds config.json and model.safetensors, or shards with their index;
            generation_config.json is read for its stop tokens if it is there. In a bucket, too:
            gs://bucket/Qwen3-8B.
        dtype: "float32" or "bfloat16", what the weights are cast to.
        mesh: of `make_mesh`, to spread the weights over; each device's part is read by itself. None
            is the usual device.

    Raises:
        ValueError: the directory or a file is missing or broken, the config asks for something
            that is not supported, tensors are missing, unexpected or of another shape (all of
            them are listed), weights are NaN or infinite, or do not divide among the mesh's
            devices.
        TypeError: the directory is no path, or the mesh none.
    """
    target_dtype = parse_dtype(dtype)
    check_is_mesh(mesh)
    config = read_target_config(directory)
    checkpoint = SafetensorsDirectory(directory)
    shapes, rules = target_shapes(config, target_dtype), target_rules(config)
    places = None if mesh is None else target_shardings(config, mesh)
    ignored = (*_DERIVED_TENSORS, *([_LM_HEAD] if config.tie_word_embeddings else []))
    weights.check_tensors(checkpoint, shapes, rules, ignored)
    if config.tie_word_embeddings:
        _require_tied(checkpoint)
    readers = weights.parameter_readers(checkpoint, shapes, rules, target_dtype)
    return Target(config=config, params=weights.read_parameters(readers, places))


def load_tokenizer(directory: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer that lies beside a target's weights.

    Raises:
        ValueError: there is none, or its files are broken.
    """
    path = input_path(directory)
    # Without this look, a missing tokenizer becomes a search on the network.
    if not any((path / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise ValueError(
            f"{path} has no tokenizer_config.json and no tokenizer.json: save the target's "
            "tokenizer there (tokenizer.save_pretrained)"
        )
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as copy:
            for file in path.iterdir():
                if file.name.endswith(_TOKENIZER_FILES):
                    (pathlib.Path(copy) / file.name).write_bytes(file.read_bytes())
            return load_tokenizer(copy)
    # Takes seconds, and most users of the library never need it.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        tokenizer.encode("a")  # Some settings are looked at no sooner.
        return tokenizer
    except Exception as error:  # Of Python's and of Rust's, by what is wrong with which file.
        raise ValueError(
            f"{path}: the tokenizer can't be read: {type(error).__name__}: {error}"
        ) from error


def read_target_config(directory: str | os.PathLike[str]) -> TargetConfig:
    """Reads config.json and the stop tokens of generation_config.json, but no weights.

    Raises:
        ValueError: a file is missing or broken, or asks for something that is not supported; the
            message names the file.
    """
    path = existing_directory(directory)
    config = read_json(path / CONFIG_FILE)
    generation_path = path / GENERATION_CONFIG_FILE
    generation_config = read_json(generation_path) if generation_path.is_file() else None
    try:
        return target_config_from_hf(config, generation_config)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG_FILE}: {error}") from error


def save_target(
    target: Target, directory: str | os.PathLike[str], *, dtype: str | None = None
) -> None:
    """Writes a directory that `load_target` and transformers read.

    Args:
        target: the model.
        directory: made if it is not there; files of the same names are replaced.
        dtype: "float32" or "bfloat16" to store; None stores the parameters as they are.

    Raises:
        ValueError: the family's config.json has no words for this config, the parameters do not
            fit it, or weights are NaN or infinite. Nothing is written then.
    """
    check_kind("target", target, Target)
    config = target.config
    tensors = weights.named_tensors(
        target.params,
        target_shapes(config, np.dtype(np.float32)),
        target_rules(config),
        None if dtype is None else parse_dtype(dtype),
    )
    hf_config = target_config_to_hf(config)
    hf_config["dtype"] = str(tensors[_EMBEDDING].dtype)
    write_directory(directory, hf_config, tensors)
    # Hugging Face `generate` asks this file first; one from an earlier save must not win.
    write_json(
        pathlib.Path(directory) / GENERATION_CONFIG_FILE,
        {"eos_token_id": hf_config["eos_token_id"]},
    )


def write_directory(
    directory: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Writes config.json and model.safetensors."""
    write_safetensors(directory, tensors)
    write_json(pathlib.Path(directory) / CONFIG_FILE, config)


def _require_tied(checkpoint: SafetensorsDirectory) -> None:
    """A stored head beside a tied embedding must be the same table.

    Hugging Face gives up the tie where they differ, so using the embedding would silently be
    another model.
    """
    if _LM_HEAD not in checkpoint.tensors:
        return
    rows = 4096  # compared in pieces, so that no second table is held
    stored, table = checkpoint.tensors[_LM_HEAD], checkpoint.tensors[_EMBEDDING]
    same = stored.shape == table.shape and all(
        np.array_equal(
            checkpoint.read(_LM_HEAD, (slice(start, start + rows), slice(None))),
            checkpoint.read(_EMBEDDING, (slice(start, start + rows), slice(None))),
        )
        for start in range(0, table.shape[0], rows)
    )
    if not same:
        raise ValueError(
            f"{checkpoint.directory}: tie_word_embeddings=True, but {_LM_HEAD} (shape "
            f"{stored.shape}) differs from {_EMBEDDING} (shape {table.shape}); must be false, or "
            f"the tensors equal"
        )
