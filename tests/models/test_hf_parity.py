"""The target against Hugging Face PyTorch, whole and per sub-module.

The stored references (tests/references) need no torch; the tests below them run torch itself on
other weights, and are skipped where it is not installed.
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.checkpoints.families import FAMILIES
from flexdraft_jax.checkpoints.hf import load_target, save_target
from flexdraft_jax.models import masks
from flexdraft_jax.models.attention import Part, attend
from flexdraft_jax.models.layers import rope_tables
from flexdraft_jax.models.target import DecoderLayer, Target, TargetModel

REFERENCES = pathlib.Path(__file__).parents[1] / "references"
CASES = sorted(path.parent.name for path in REFERENCES.glob("*/expected.npz"))
TOLERANCE = 1e-4
PROMPT_LENGTH = 8


def _close(actual, expected, what):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE, err_msg=what)


def _logits(target: Target, tokens) -> jax.Array:
    return TargetModel(target.config, target.dtype).apply({"params": target.params}, tokens)


def _check_sub_modules(target: Target, expected: dict[str, np.ndarray]) -> None:
    """Each sub-module alone, on what Hugging Face fed to its own."""
    config, params = target.config, target.params
    tokens = expected["tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    rope = rope_tables(config, positions)

    def of_model(part, x):
        return TargetModel(config).apply({"params": params}, x, method=part)

    embedded = of_model(lambda model, x: model.embed(x), tokens)
    _close(embedded, expected["embed"], "embed")
    x = expected["embed"]
    for i, window in enumerate(config.layer_windows):
        layer = DecoderLayer(config, window)
        variables = {"params": params[f"layers_{i}"]}
        mask = masks.segment_mask(jnp.zeros_like(tokens), positions, window)

        def attention(layer, x, mask=mask):
            queries, fresh = layer.attention.qkv(layer.input_norm(x), rope.of(layer.window))
            return layer.attention.output(attend(queries, [Part(fresh, mask)]))

        def mlp(layer, x, attended):
            return layer.mlp(layer.post_attention_norm(layer.add_attention(x, attended)))

        attended = expected[f"layers_{i}/attention"]
        _close(layer.apply(variables, x, method=attention), attended, f"layers_{i}/attention")
        behind = layer.apply(variables, x, attended, method=mlp)
        _close(behind, expected[f"layers_{i}/mlp"], f"layers_{i}/mlp")
        whole, _ = layer.apply(variables, x, rope.of(window), mask)
        _close(whole, expected[f"layers_{i}"], f"layers_{i}")
        x = expected[f"layers_{i}"]

    normed = of_model(lambda model, x: model.final_norm(x), x)
    _close(normed, expected["final_norm"], "final_norm")
    logits = of_model(TargetModel.logits, expected["final_norm"])
    _close(logits, expected["logits"], "logits of the head alone")


def _greedy(target: Target, prompts: np.ndarray, new_tokens: int) -> np.ndarray:
    """Greedy continuations without a cache; causality makes the padding behind harmless."""
    forward = jax.jit(functools.partial(_logits, target))
    tokens = np.pad(prompts, ((0, 0), (0, new_tokens)))
    for end in range(prompts.shape[1], tokens.shape[1]):
        tokens[:, end] = np.asarray(forward(tokens)[:, end - 1].argmax(-1))
    return tokens[:, prompts.shape[1] :]


@pytest.fixture(scope="module", params=CASES)
def reference(request) -> tuple[Target, dict[str, np.ndarray]]:
    directory = REFERENCES / request.param
    return load_target(directory), dict(np.load(directory / "expected.npz"))


def test_references_cover_every_family():
    families = {case.split("-")[0] for case in CASES}
    assert families == set(FAMILIES)


def test_logits(reference):
    target, expected = reference
    _close(_logits(target, expected["tokens"]), expected["logits"], "logits")


def test_sub_modules(reference):
    _check_sub_modules(*reference)


def test_greedy_continuation(reference):
    target, expected = reference
    prompts = expected["tokens"][:, :PROMPT_LENGTH]
    new_ids = _greedy(target, prompts, expected["new_ids"].shape[1])
    np.testing.assert_array_equal(new_ids, expected["new_ids"])


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_load_is_exact(case):
    """The references are stored in bfloat16, so both loads must hold the same numbers."""
    half, full = (load_target(REFERENCES / case, dtype=d) for d in ("bfloat16", "float32"))
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b),
        half.params,
        full.params,
    )


def test_bfloat16_logits_are_near():
    target = load_target(REFERENCES / "qwen3", dtype="bfloat16")
    expected = np.load(REFERENCES / "qwen3" / "expected.npz")
    error = np.asarray(_logits(target, expected["tokens"])) - expected["logits"]
    assert np.sqrt(np.mean(error**2)) < 0.03 * expected["logits"].std()


# --- with torch itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker():
    """The script that made the references, as a module."""
    pytest.importorskip("torch", reason="parity with live Hugging Face models needs torch")
    spec = importlib.util.spec_from_file_location("references", REFERENCES / "make_references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_live_parity(case, maker, tmp_path):
    """Other weights, in full float32 and in many shards."""
    import torch

    model, tokens = maker.build_model(case, 1000, torch.float32), maker.make_tokens(case, 1000)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    target, expected = load_target(tmp_path), maker.record(model, tokens)
    _close(_logits(target, expected["tokens"]), expected["logits"], "logits")
    _check_sub_modules(target, expected)
    prompts = tokens[:, :PROMPT_LENGTH]
    new_ids, margin = maker.greedy(model, prompts, 8)
    assert margin > TOLERANCE, "a near-tie: choose another seed"
    np.testing.assert_array_equal(_greedy(target, prompts.numpy(), 8), new_ids)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_what_we_save(case, dtype, maker, tmp_path):
    import torch
    import transformers

    target = load_target(REFERENCES / case)
    save_target(target, tmp_path, dtype=dtype)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    # Anew, as Gemma rounds the factor of its embeddings to the type that it was loaded in.
    model = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    expected = np.load(REFERENCES / case / "expected.npz")
    with torch.no_grad():
        logits = model(torch.tensor(expected["tokens"]).long()).logits.numpy()
    _close(logits, expected["logits"], "logits of the saved model")
