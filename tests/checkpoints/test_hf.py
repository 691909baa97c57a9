import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import flexdraft_jax as fd
from flexdraft_jax.checkpoints.hf import (
    load_target,
    load_tokenizer,
    read_target_config,
    save_target,
)
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.models.target import Target

REFERENCES = pathlib.Path(__file__).parents[1] / "references"
CASES = sorted(path.parent.name for path in REFERENCES.glob("*/expected.npz"))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def _assert_same(a: Target, b: Target) -> None:
    assert a.config == b.config
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert x.dtype == y.dtype
        # As bytes, so that -0.0 and 0.0 differ.
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_is_bit_for_bit_equal(case, dtype, tmp_path):
    target = load_target(REFERENCES / case, dtype=dtype)
    # Off the bfloat16 grid, so that float32 storage is tested as such.
    params = jax.tree.map(lambda x: (x * 1.0001).astype(x.dtype), target.params)
    target = Target(target.config, params)
    save_target(target, tmp_path / "new" / "folder")
    _assert_same(load_target(tmp_path / "new" / "folder", dtype=dtype), target)


def test_float32_can_be_stored_as_bfloat16(tmp_path):
    target = load_target(REFERENCES / "qwen2-tied")
    save_target(target, tmp_path, dtype="bfloat16")
    stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    _assert_same(load_target(tmp_path), target)  # the references are bfloat16 numbers


def test_single_file_equals_shards(tmp_path):
    target = load_target(REFERENCES / "qwen3")
    assert not (REFERENCES / "qwen3" / "model.safetensors").exists()
    save_target(target, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]
    _assert_same(load_target(tmp_path), target)


def test_stop_tokens_of_an_earlier_save_do_not_survive(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    save_target(load_target(REFERENCES / "qwen2-tied"), tmp_path)
    assert load_target(tmp_path).eos_token_ids == ()


def test_generation_config_wins(copy_of):
    directory = copy_of("references/qwen2-tied").config(eos_token_id=3)
    assert load_target(directory.path).eos_token_ids == (3,)
    (directory.path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert load_target(directory.path).eos_token_ids == (5, 6)
    assert read_target_config(directory.path).eos_token_ids == (5, 6)


def test_goldens_load():
    for pair in ("bytes-h64", "bpe-h96"):
        target = load_target(REFERENCES.parent / "golden" / pair / "target")
        assert target.config.tie_word_embeddings == (pair == "bpe-h96")


def test_every_wrong_tensor_is_listed_with_both_shapes(copy_of):
    def edit(tensors):
        del tensors["model.norm.weight"]
        tensors[Q_PROJ] = np.ones((48, 47), np.float32)
        tensors["model.layers.3.mlp.up_proj.weight"] = np.ones((64, 48), np.float32)
        tensors["model.layers.0.self_attn.k_proj.bias"] = np.ones(24, np.int8)

    directory = copy_of("references/qwen2-tied").tensors(edit)
    with pytest.raises(ValueError) as error:
        load_target(directory.path)
    message = str(error.value)
    assert str(directory.path) in message
    for line in (
        "model.norm.weight: missing, expected shape (48,)",
        f"{Q_PROJ}: has shape (48, 47), expected shape (48, 48)",
        "model.layers.3.mlp.up_proj.weight: unexpected, has shape (64, 48)",
        "k_proj.bias: has dtype I8, expected one of F64, F32, F16, BF16",
    ):
        assert line in message
    assert len(message.splitlines()) == 1 + 4


def test_shapes_are_told_as_they_are_stored(copy_of):
    """[out, in], not our [in, out]; a transposed tensor does not slip through."""

    def edit(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    with pytest.raises(ValueError, match=r"shape \(48, 64\), expected shape \(64, 48\)"):
        load_target(copy_of("references/qwen2-tied").tensors(edit).path)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("llama-linear-bias", {"mlp_bias": False}),  # its biases are unexpected then
        ("llama-linear-bias", {"attention_bias": False}),
        ("mistral-window", {"model_type": "qwen3"}),  # has no q/k norms
        ("mistral-window", {"num_hidden_layers": 2}),
        ("phi3-window", {"num_key_value_heads": 4}),
        ("gemma3_text-window", {"head_dim": 8}),
        ("qwen3_moe", {"num_experts": 5}),
        ("qwen3_moe", {"num_experts": 7}),
        ("mistral-window", {"tie_word_embeddings": True, "vocab_size": 127}),
    ],
)
def test_config_of_another_model(case, changes, copy_of):
    with pytest.raises(ValueError, match="the tensors do not fit config.json"):
        load_target(copy_of(f"references/{case}").config(**changes).path)


def test_untied_without_head(copy_of):
    directory = copy_of("references/qwen2-tied").config(tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head.weight: missing, expected shape \(128, 48\)"):
        load_target(directory.path)


def test_harmless_extras_are_ignored(copy_of):
    def edit(tensors):
        tensors[HEAD] = tensors[EMBEDDING].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
        tensors["model.rotary_emb.inv_freq"] = np.ones(6, np.float32)

    directory = copy_of("references/qwen2-tied")
    plain = load_target(directory.path)
    _assert_same(load_target(directory.tensors(edit).path), plain)


@pytest.mark.parametrize("shape", [(128, 48), (127, 48)])
def test_tied_with_another_head_is_refused(shape, copy_of):
    def edit(tensors):
        tensors[HEAD] = np.ones(shape, np.float32)

    directory = copy_of("references/qwen2-tied").tensors(edit)
    with pytest.raises(ValueError, match="tie_word_embeddings=True, but lm_head.weight.*differs"):
        load_target(directory.path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_named(bad, copy_of):
    def edit(tensors):
        tensors[Q_PROJ][3, 4] = bad

    directory = copy_of("references/qwen2-tied").tensors(edit)
    with pytest.raises(ValueError, match=f"{Q_PROJ}'?: 1 of its 2304 values"):
        load_target(directory.path)


def test_missing_and_broken_files(copy_of, tmp_path):
    with pytest.raises(ValueError, match="directory=.*nowhere.*no such directory"):
        load_target(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="config.json: there is no such file"):
        load_target(tmp_path / "empty")
    directory = copy_of("references/qwen2-tied").path
    (directory / "generation_config.json").write_text("{,}")
    with pytest.raises(ValueError, match="generation_config.json: not valid JSON"):
        load_target(directory)
    (directory / "generation_config.json").unlink()
    (directory / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        load_target(directory)


def test_config_that_is_nested_too_deep(copy_of):
    directory = copy_of("references/qwen2-tied").path
    (directory / "config.json").write_text('{"a": ' + "[" * 200 + "]" * 200 + "}")
    with pytest.raises(ValueError, match="config.json: must be nested at most 100 deep"):
        load_target(directory)


@pytest.mark.parametrize("damage", ["{", "[]", '{"model": {"vocab": {"a": null}}}', "\udcff"])
def test_a_broken_tokenizer_is_named(damage, tmp_path):
    build_byte_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(damage.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer can't be read: "):
            load_tokenizer(tmp_path)


def test_a_tokenizer_that_can_not_encode_is_named(tmp_path):
    build_byte_tokenizer().save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": "a"}))
    with pytest.raises(ValueError, match="the tokenizer can't be read: TypeError"):
        load_tokenizer(tmp_path)


def test_arguments_of_other_kinds_are_named():
    with pytest.raises(TypeError, match="directory=3: must be a path"):
        load_target(3)
    with pytest.raises(TypeError, match="mesh=3: must be a Mesh or None"):
        load_target(REFERENCES / "qwen2-tied", mesh=3)
    with pytest.raises(TypeError, match="target is a int: must be a Target"):
        fd.load_draft(REFERENCES, 3)
    with pytest.raises(TypeError, match="rng=3: must be a jax.random.key"):
        fd.init_target(load_target(REFERENCES / "qwen2-tied").config, 3)
    with pytest.raises(TypeError, match="draft is a int: must be a Draft"):
        fd.save_draft(3, 3, REFERENCES)


def test_config_errors_name_the_file(copy_of):
    directory = copy_of("references/qwen2-tied").config(hidden_act="gelu").path
    with pytest.raises(ValueError, match="qwen2-tied/config.json: hidden_act='gelu'"):
        load_target(directory)


@pytest.mark.parametrize("dtype", ["float16", "int8", None])
def test_dtype_is_checked(dtype, tmp_path):
    with pytest.raises(ValueError, match="dtype=.*'float32', 'bfloat16'"):
        load_target(REFERENCES / "qwen2-tied", dtype=dtype)
    if dtype is not None:
        target = load_target(REFERENCES / "qwen2-tied")
        with pytest.raises(ValueError, match="dtype="):
            save_target(target, tmp_path, dtype=dtype)


def test_what_does_not_fit_is_not_saved(tmp_path):
    target = load_target(REFERENCES / "qwen2-tied")
    params = dict(target.params, final_norm={"scale": np.ones(47, np.float32)})
    with pytest.raises(ValueError, match=r"final_norm/scale.*\(47,\).*\(48,\)"):
        save_target(Target(target.config, params), tmp_path / "out")
    params = dict(target.params, final_norm={"scale": np.full(48, np.nan, np.float32)})
    with pytest.raises(ValueError, match="model.norm.weight"):
        save_target(Target(target.config, params), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
