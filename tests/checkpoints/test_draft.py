import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flexdraft_jax.checkpoints.draft import load_draft, save_draft
from flexdraft_jax.checkpoints.hf import load_target
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.models.draft import Draft, draft_shapes
from flexdraft_jax.models.target import Target

TESTS = pathlib.Path(__file__).parents[1]
CASES = sorted(path.parent.name for path in TESTS.glob("references/*/expected.npz"))
GOLDEN = "golden/bytes-h64/draft"


@pytest.fixture(scope="module")
def golden_target() -> Target:
    return load_target(TESTS / "golden/bytes-h64/target")


def _random_draft(target: Target, num_draft_layers: int = 2) -> Draft:
    """Random numbers everywhere, so that swapped tensors show."""
    config = DraftConfig(num_draft_layers, block_size=4, calibration_rank=5)
    random = np.random.default_rng(0)
    shapes = draft_shapes(target.config, config, target.dtype)
    params = jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape), s.dtype), shapes)
    return Draft(config, params)


def _assert_same(a: Draft, b: Draft) -> None:
    assert a.config == b.config
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _layers(number: int) -> dict:
    return {"num_hidden_layers": number, "layer_types": None}


def _nested(directory) -> dict:
    return json.loads((directory.path / "config.json").read_text())["flexdraft_config"]


@pytest.mark.parametrize(("pair", "config"), [("bytes-h64", (2, 8, 32)), ("bpe-h96", (3, 8, 48))])
def test_goldens_load(pair, config):
    """One has flexdraft_config, the other dflash_config; both have tensors that are never used."""
    target = load_target(TESTS / "golden" / pair / "target")
    draft = load_draft(TESTS / "golden" / pair / "draft", target)
    assert draft.config == DraftConfig(*config)
    stored = safetensors.numpy.load_file(TESTS / "golden" / pair / "draft/model.safetensors")
    params = draft.params
    for ours, name, transpose in [
        (params["mask_embedding"], "mask_embedding", False),
        (params["layers_1"]["o_proj"]["kernel"], "layers.1.self_attn.o_proj.weight", True),
        (params["layers_1"]["k_norm"]["scale"], "layers.1.self_attn.k_norm.weight", False),
        (params["calibration"]["hidden"]["kernel"], "anchor_bias_mlp.0.weight", True),
        (params["calibration"]["hidden"]["bias"], "anchor_bias_mlp.0.bias", False),
        (params["calibration"]["output"]["kernel"], "anchor_bias_mlp.2.weight", True),
        (params["calibration"]["output"]["bias"], "anchor_bias_mlp.2.bias", False),
    ]:
        np.testing.assert_array_equal(ours, stored[name].T if transpose else stored[name])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded_is_bit_for_bit_equal(case, dtype, tmp_path):
    """In every family, with the biases and q/k norms that it has."""
    target = load_target(TESTS / "references" / case, dtype=dtype)
    draft = _random_draft(target)
    save_draft(draft, target, tmp_path / "new" / "folder")
    _assert_same(load_draft(tmp_path / "new" / "folder", target), draft)
    names = set(safetensors.numpy.load_file(tmp_path / "new/folder/model.safetensors"))
    assert ("layers.0.self_attn.q_proj.bias" in names) == target.config.qkv_bias
    assert ("layers.0.self_attn.o_proj.bias" in names) == target.config.o_bias
    assert ("layers.0.self_attn.q_norm.weight" in names) == target.config.qk_norm


@pytest.mark.parametrize("num_draft_layers", [1, 3])
def test_from_one_layer_to_all(num_draft_layers, tmp_path):
    target = load_target(TESTS / "references/mistral-window")
    draft = _random_draft(target, num_draft_layers)
    save_draft(draft, target, tmp_path)
    _assert_same(load_draft(tmp_path, target), draft)


def test_dtypes(golden_target, tmp_path):
    """Loading follows the target unless told otherwise; saving follows the draft."""
    draft = load_draft(TESTS / GOLDEN, golden_target, dtype="bfloat16")
    assert draft.params["mask_embedding"].dtype == jnp.bfloat16
    save_draft(draft, golden_target, tmp_path / "half")
    assert load_draft(tmp_path / "half", golden_target).params["mask_embedding"].dtype == "float32"
    full = load_draft(TESTS / GOLDEN, golden_target)
    save_draft(full, golden_target, tmp_path / "cast", dtype="bfloat16")
    _assert_same(load_draft(tmp_path / "cast", golden_target, dtype="bfloat16"), draft)
    for function in (load_draft, save_draft):
        arguments = (
            (full, golden_target, tmp_path)
            if function is save_draft
            else (
                TESTS / GOLDEN,
                golden_target,
            )
        )
        with pytest.raises(ValueError, match="dtype='float16'"):
            function(*arguments, dtype="float16")


def test_written_config(golden_target, tmp_path):
    """The same as the golden's, as far as anything in it counts."""
    draft = load_draft(TESTS / GOLDEN, golden_target)
    save_draft(draft, golden_target, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((TESTS / GOLDEN / "config.json").read_text())
    assert "dflash_config" not in written
    assert written["eos_token_id"] is None and "eos_token_id" not in published
    different = {k for k in written if written[k] != published.get(k)} - {"eos_token_id"}
    assert different == {"max_window_layers"}  # counts for nothing without a window
    stored, ours = (
        safetensors.numpy.load_file(d / "model.safetensors") for d in (TESTS / GOLDEN, tmp_path)
    )
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, stored[name])


@pytest.mark.parametrize("case", CASES)
def test_the_familys_config_class_reads_it(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    target = load_target(TESTS / "references" / case)
    save_draft(_random_draft(target), target, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert config.model_type == target.config.model_type
    assert (config.num_hidden_layers, config.num_target_layers, config.block_size) == (2, 3, 4)
    assert config.flexdraft_config["target_layer_ids"] == [1, 2]


def test_windows_of_the_draft_layers_are_written(tmp_path):
    target = load_target(TESTS / "references/qwen3-window-bias-tied")
    save_draft(_random_draft(target), target, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["layer_types"] == ["full_attention", "sliding_attention"]
    assert written["sliding_window"] == 8
    assert written["num_hidden_layers"] == 2 and written["num_target_layers"] == 3


def test_unused_tensors_are_not_required(golden_target, copy_of):
    def edit(tensors):
        for name in list(tensors):
            if "mlp." in name and "anchor" not in name or "layernorm" in name or name[:4] == "norm":
                del tensors[name]
        assert len(tensors) == 1 + 2 * 6 + 4

    directory = copy_of(GOLDEN)
    before = load_draft(directory.path, golden_target)
    _assert_same(load_draft(directory.tensors(edit).path, golden_target), before)


def test_every_wrong_tensor_is_listed_with_both_shapes(golden_target, copy_of):
    def edit(tensors):
        del tensors["mask_embedding"]
        tensors["anchor_bias_mlp.0.weight"] = np.ones((128, 32), np.float32)
        tensors["layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
        tensors["layers.2.self_attn.q_proj.weight"] = np.ones((64, 64), np.float32)
        tensors["layers.1.self_attn.v_proj.weight"] = np.ones((32, 64), np.int32)

    with pytest.raises(ValueError) as error:
        load_draft(copy_of(GOLDEN).tensors(edit).path, golden_target)
    message = str(error.value)
    for line in (
        "mask_embedding: missing, expected shape (64,)",
        "anchor_bias_mlp.0.weight: has shape (128, 32), expected shape (32, 128)",
        "layers.0.self_attn.q_proj.bias: unexpected, has shape (64,)",
        "layers.2.self_attn.q_proj.weight: unexpected, has shape (64, 64)",
        "layers.1.self_attn.v_proj.weight: has dtype I32, expected one of",
    ):
        assert line in message
    assert len(message.splitlines()) == 1 + 5


def test_non_finite_weights_are_named(golden_target, copy_of):
    def edit(tensors):
        tensors["anchor_bias_mlp.2.bias"][7] = np.inf

    with pytest.raises(ValueError, match="anchor_bias_mlp.2.bias'?: 1 of its 128 values"):
        load_draft(copy_of(GOLDEN).tensors(edit).path, golden_target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 1}, "block_size=1: must be an integer from 2 to"),
        ({"block_size": None}, "block_size=None"),
        (_layers(3), r"target_layer_ids=\[2, 3\].*num_hidden_layers=3.*\[1, 2, 3\]"),
        (_layers(5), r"target_layer_ids=\[2, 3\].*num_hidden_layers=5.*4 layers"),
        ({"num_target_layers": 5}, r"another target: num_target_layers=5 \(target: 4\)"),
        ({"hidden_size": 96}, r"another target: hidden_size=96 \(target: 64\)"),
        ({"head_dim": 32}, r"head_dim=32 \(target: 16\)"),
        ({"num_attention_heads": 8}, r"num_heads=8 \(target: 4\)"),
        ({"num_key_value_heads": 4}, r"num_kv_heads=4 \(target: 2\)"),
        ({"vocab_size": 512}, r"vocab_size=512 \(target: 128\)"),
        ({"attention_bias": True}, r"qkv_bias=True \(target: False\), o_bias=True"),
        ({"rope_theta": 1e4}, r"rope_theta=10000.0 \(target: 1000000.0\)"),
        ({"model_type": "llama"}, r"another target: model_type='llama' \(target: 'qwen3'\)"),
        (
            {"hidden_size": 96, "vocab_size": 512},
            r"hidden_size=96 \(target: 64\), vocab_size=512 \(target: 128\)",
        ),
        ({"flexdraft_config": None}, "flexdraft_config or dflash_config is missing"),
        ({"flexdraft_config": [2, 3]}, r"flexdraft_config=\[2, 3\]: must be an object"),
        ({"dflash_config": {"anchor_bias_rank": 3}}, "flexdraft_config and dflash_config differ"),
    ],
)
def test_refused_configs(changes, message, golden_target, copy_of):
    with pytest.raises(ValueError, match=f"draft/config.json: .*{message}"):
        load_draft(copy_of(GOLDEN).config(**changes).path, golden_target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_anchor_bias_logits": False}, "enable_anchor_bias_logits=False.*must be true"),
        ({"target_layer_ids": [1, 2]}, r"target_layer_ids=\[1, 2\].*\[2, 3\]"),
        ({"target_layer_ids": [3, 2]}, r"target_layer_ids=\[3, 2\]"),
        ({"target_layer_ids": None}, "target_layer_ids=None"),
        ({"anchor_bias_rank": 0}, "anchor_bias_rank=0"),
        (
            {"anchor_bias_rank": 16},
            r"anchor_bias_mlp.0.bias: has shape \(32,\), expected shape \(16,\)",
        ),
    ],
)
def test_refused_draft_fields(changes, message, golden_target, copy_of):
    directory = copy_of(GOLDEN)
    directory.config(flexdraft_config=_nested(directory) | changes)
    with pytest.raises(ValueError, match=message):
        load_draft(directory.path, golden_target)


def test_both_keys_may_say_the_same(golden_target, copy_of):
    directory = copy_of(GOLDEN)
    directory.config(dflash_config=_nested(directory))
    assert load_draft(directory.path, golden_target).config.calibration_rank == 32


def test_a_target_is_no_draft(golden_target):
    with pytest.raises(ValueError, match="is this a draft's directory"):
        load_draft(TESTS / "golden/bytes-h64/target", golden_target)


def test_missing_and_broken_files(golden_target, copy_of, tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        load_draft(tmp_path / "nowhere", golden_target)
    directory = copy_of(GOLDEN).path
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ValueError, match="truncated"):
        load_draft(directory, golden_target)
    weights.unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        load_draft(directory, golden_target)
    (directory / "config.json").write_text("")
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        load_draft(directory, golden_target)


def test_a_draft_of_another_target_is_not_saved(golden_target, tmp_path):
    draft = _random_draft(golden_target)
    other = load_target(TESTS / "references/qwen3")
    with pytest.raises(ValueError, match=r"mask_embedding.*\(64,\).*\(48,\)"):
        save_draft(draft, other, tmp_path / "out")
    too_deep = Draft(dataclasses.replace(draft.config, num_draft_layers=5), draft.params)
    with pytest.raises(ValueError, match="num_draft_layers=5.*num_layers=4"):
        save_draft(too_deep, golden_target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_again_gives_the_same_bytes(golden_target, tmp_path):
    draft = _random_draft(golden_target)
    for name in "ab":
        save_draft(draft, golden_target, tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
