"""Targets, drafts and tokenizers: config.json, weights, generation_config.json."""

import dataclasses
import functools
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np
import safetensors.numpy
import tiny
import wild
from transformers import AutoConfig
from trial import Entry, Trial

import flexdraft_jax as fd
from flexdraft_jax.checkpoints import hf, weights
from flexdraft_jax.checkpoints.draft import DRAFT_RULES, load_draft
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf, target_config_to_hf
from flexdraft_jax.checkpoints.safetensors import INDEX_FILE, SINGLE_FILE
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.decoding.requests import check_requests
from flexdraft_jax.evaluation.generation import encode_prompt
from flexdraft_jax.evaluation.measure import decode_text
from flexdraft_jax.models.draft import draft_shapes
from flexdraft_jax.models.target import Target, target_shapes

_TESTS = Path(__file__).parents[1]
_TARGETS = sorted(path.parent for path in _TESTS.glob("references/*/config.json"))
_GOLDEN = _TESTS / "golden/bytes-h64"
# Of fields that the references' own files don't have.
_FIELDS = (
    *("head_dim", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "layer_types"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "partial_rotary_factor"),
    *("quantization_config", "hidden_act", "num_experts", "mlp_only_layers", "eos_token_id"),
    *("tie_word_embeddings", "rope_local_base_freq", "is_causal", "decoder_sparse_step"),
    *("original_max_position_embeddings", "final_logit_softcapping", "query_pre_attn_scalar"),
)


def _copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if path.suffix in (".json", ".safetensors", ".jinja"):
            shutil.copyfile(path, folder / path.name)


def _stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, read by the safetensors library alone."""
    whole = folder / SINGLE_FILE
    files = [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))
    return {name: x for file in files for name, x in safetensors.numpy.load_file(file).items()}


def _check_weights(folder: Path, params: Any, shapes: Any, rules: tuple[weights.Rule, ...]) -> None:
    """Every weight is what the library reads, and finite."""
    stored = _stored(folder)
    for name, tensor in weights.named_tensors(params, shapes, rules, None).items():
        assert np.isfinite(tensor).all(), f"{name} is not finite"
        with np.errstate(over="ignore"):
            assert np.array_equal(tensor, stored[name].astype(np.float32)), f"{name} differs"


def _load_target(folder: Path) -> Target:
    target = fd.load_target(folder)
    shapes = target_shapes(target.config, np.dtype(np.float32))
    _check_weights(folder, target.params, shapes, hf.target_rules(target.config))
    return target


def _check_config(folder: Path, target: Target) -> None:
    """What was read can be said again, and is then the same."""
    again = target_config_to_hf(target.config)
    assert target_config_from_hf(json.loads(json.dumps(again))) == target.config
    _check_like_hugging_face(folder, target)


def _check_like_hugging_face(folder: Path, target: Target) -> None:
    """Where transformers reads the file too, it means the same by it."""
    try:
        theirs = AutoConfig.from_pretrained(folder)
    except Exception:  # It refuses less, and more, and by anything.
        return
    ours = target.config
    rope = theirs.rope_parameters
    full = rope.get("full_attention", rope)
    rope_type = full["rope_type"]
    if rope_type not in ("default", "linear", "llama3"):
        raise AssertionError(f"rope_type is {rope_type!r} there")
    # Experts' own width is another field, and Mistral's missing heads are 8 there.
    pairs = {
        "vocab_size": (ours.vocab_size, theirs.vocab_size),
        "hidden_size": (ours.hidden_size, theirs.hidden_size),
        "num_layers": (ours.num_layers, theirs.num_hidden_layers),
        "num_heads": (ours.num_heads, theirs.num_attention_heads),
        "num_kv_heads": (ours.num_kv_heads, theirs.num_key_value_heads),
        "rms_norm_eps": (ours.rms_norm_eps, theirs.rms_norm_eps),
        "rope_theta": (ours.rope_theta, full["rope_theta"]),
        "rope_scaling": (ours.rope_scaling is None, rope_type == "default"),
        "tied": (ours.tie_word_embeddings, theirs.tie_word_embeddings),
        "max_position_embeddings": (
            ours.max_position_embeddings,
            theirs.max_position_embeddings,
        ),
    }
    if ours.rope_scaling is not None:
        pairs["factor"] = (ours.rope_scaling.factor, full["factor"])
    if getattr(theirs, "head_dim", None) is not None:
        pairs["head_dim"] = (ours.head_dim, theirs.head_dim)
    if ours.experts is not None:
        pairs["num_experts"] = (ours.experts.number, theirs.num_experts)
        pairs["per_token"] = (ours.experts.per_token, theirs.num_experts_per_tok)
        pairs["normalize"] = (ours.experts.normalize, theirs.norm_topk_prob)
    kinds = getattr(theirs, "layer_types", None)
    if kinds is not None:
        windows = tuple(
            theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds
        )
        pairs["layer_windows"] = (ours.layer_windows, windows)
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    assert not different, f"ours and transformers': {different}"


def _target_config(rng: random.Random, folder: Path) -> Trial:
    source = rng.choice(_TARGETS)
    _copy(source, folder)
    config = json.loads((source / "config.json").read_text())
    if rng.random() < 0.15:
        path = folder / "generation_config.json"
        wild.write_json(rng, path, {"eos_token_id": [1, 2], "temperature": 0.6})
    else:
        path = folder / "config.json"
        wild.write_json(rng, path, config, _FIELDS)

    def run() -> None:
        _check_config(folder, _load_target(folder))

    return Trial(run, ("config.json",), f"{source.name}: {path.read_bytes()[:3000]!r}")


def _bad_tensors(rng: random.Random, tensors: dict[str, np.ndarray]) -> str:
    """Breaks tensors, and says how."""
    name = rng.choice(sorted(tensors))
    tensor = tensors[name].copy()
    kind = rng.randrange(9)
    if kind == 0:
        del tensors[name]
        return f"{name} missing"
    if kind == 1:
        tensors[f"{name}.more"] = tensor
        return f"{name}.more is there"
    if kind == 2:
        bad = rng.choice((math.nan, math.inf, -math.inf))
        tensor[tuple(rng.randrange(size) for size in tensor.shape)] = bad
        tensors[name] = tensor
        return f"{name} has {bad}"
    if kind == 3:
        tensors[name] = np.ascontiguousarray(tensor.T)
        return f"{name} transposed"
    if kind == 4:
        tensors[name] = tensor.reshape(rng.choice(((-1,), (1, *tensor.shape))))
        return f"{name} has other dimensions"
    if kind == 5:
        dtype = rng.choice((np.float16, np.float64, ml_dtypes.bfloat16, np.int8, np.int32, bool))
        tensors[name] = tensor.astype(dtype)
        return f"{name} is {np.dtype(dtype)}"
    if kind == 6:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
        return f"{name} and {other} exchanged"
    if kind == 7:
        tensors[name] = tensor[:-1] if rng.random() < 0.5 else np.concatenate([tensor, tensor])
        return f"{name} shorter or longer"
    tensors[name] = tensor.astype(np.float64) * 1e300
    return f"{name} overflows"


def _break_weights(rng: random.Random, folder: Path) -> str:
    """Breaks a folder's weights in one way."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX_FILE
    path = rng.choice(files)
    kind = rng.randrange(5)
    if kind == 0:
        return wild.damage_folder(rng, folder, files)
    if kind == 1:  # What says where the rest lies is a small part of the file.
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(wild.damaged(rng, content[:end]) + content[end:])
        return f"header of {path.name} damaged"
    if kind == 2 and index.exists():
        wild.write_json(rng, index, json.loads(index.read_text()))
        return f"index: {index.read_bytes()[:2000]!r}"
    tensors = safetensors.numpy.load_file(path)
    what = _bad_tensors(rng, tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name}: {what}"


def _target_weights(rng: random.Random, folder: Path) -> Trial:
    source = rng.choice(_TARGETS)
    _copy(source, folder)
    before = _stored(folder)
    what = _break_weights(rng, folder)

    def run() -> None:
        _load_target(folder)
        if what.startswith("header"):  # The tensors behind it are as they were.
            after = _stored(folder)
            assert all(np.array_equal(after[name], x) for name, x in before.items())

    return Trial(run, (str(folder), "tensor "), f"{source.name}: {what}")


@functools.cache
def _golden() -> Target:
    return fd.load_target(_GOLDEN / "target")


@functools.cache
def _other_target() -> Target:
    return fd.load_target(_TESTS / "golden/bpe-h96/target")


def _load_draft(folder: Path, target: Target) -> None:
    draft = load_draft(folder, target)
    shapes = draft_shapes(target.config, draft.config, np.dtype(np.float32))
    _check_weights(folder, draft.params, shapes, DRAFT_RULES)
    assert target is _golden(), "a draft of another target was taken"


def _draft(rng: random.Random, folder: Path) -> Trial:
    _copy(_GOLDEN / "draft", folder)
    target = _other_target() if rng.random() < 0.05 else _golden()
    if rng.random() < 0.6:
        path = folder / "config.json"
        wild.write_json(rng, path, json.loads(path.read_text()))
        what = repr(path.read_bytes()[:3000])
    else:
        what = _break_weights(rng, folder)
    return Trial(lambda: _load_draft(folder, target), (str(folder), "tensor "), what)


@functools.cache
def _tokenizer_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        build_byte_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _tokenizer(rng: random.Random, folder: Path) -> Trial:
    for name, content in _tokenizer_files().items():
        (folder / name).write_bytes(content)
    path = folder / rng.choice(sorted(_tokenizer_files()))
    kind = rng.randrange(4)
    if kind == 0:
        what = wild.damage_folder(rng, folder)
    elif kind == 1 or path.suffix != ".json":
        path.write_bytes(wild.damaged(rng, path.read_bytes()))
        what = f"{path.name} damaged"
    else:
        path.write_text(wild.as_json(wild.changed(rng, json.loads(path.read_text()))))
        what = f"{path.name} changed"

    def run() -> None:
        tokenizer = hf.load_tokenizer(folder)
        models = dataclasses.replace(tiny.models(), tokenizer=tokenizer)
        for raw in (True, False):
            tokens = encode_prompt(models, "Hi é 🙂", raw=raw)
            check_requests(tiny.CONFIG, [tokens], 3, 0.0, None)
        assert isinstance(decode_text(tokenizer, [0, 72, 255, 256, 259]), str)

    names = (str(folder), "chat template", "tokenizer", "prompt")
    return Trial(run, names, what)


def _saving(rng: random.Random, folder: Path) -> Trial:
    """What would be refused again is not written."""
    target, draft = _golden(), load_draft(_GOLDEN / "draft", _golden())
    leaves: list[np.ndarray] = []

    def break_one(params: Any) -> Any:
        flat = weights.flatten(params)
        name = rng.choice(sorted(flat))
        tensor = np.array(flat[name])
        kind = rng.randrange(4)
        if kind < 2:
            tensor.flat[rng.randrange(tensor.size)] = rng.choice((math.nan, math.inf, -math.inf))
        elif kind == 2:
            tensor = tensor[..., :-1]
        leaves.append(tensor)
        return flax.traverse_util.unflatten_dict({**flat, name: tensor}, sep="/")

    save: Callable[[], None]
    if rng.random() < 0.5:
        broken = dataclasses.replace(target, params=break_one(target.params))

        def save() -> None:
            fd.save_target(broken, folder / "out")
            fd.load_target(folder / "out")
    else:
        bad = dataclasses.replace(draft, params=break_one(draft.params))

        def save() -> None:
            fd.save_draft(bad, target, folder / "out")
            load_draft(folder / "out", target)

    def run() -> None:
        try:
            save()
        except ValueError:
            assert not (folder / "out").exists(), "something was written"
            raise
        assert all(np.isfinite(leaf).all() for leaf in leaves)

    return Trial(run, ("tensor ", "params do not fit"), "NaN or another shape is saved")


ENTRIES: list[Entry] = [
    Entry("config.json of a target", _target_config),
    Entry("weights of a target", _target_weights),
    Entry("a draft", _draft),
    Entry("a tokenizer", _tokenizer),
    Entry("saving weights", _saving),
]
