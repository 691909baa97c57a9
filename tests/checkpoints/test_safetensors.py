import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flexdraft_jax.checkpoints.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    SafetensorsDirectory,
    TensorInfo,
    parse_dtype,
    require_finite,
    write_safetensors,
)
from flexdraft_jax.checkpoints.weights import (
    ParameterReader,
    Placement,
    Rule,
    check_tensors,
    flatten,
    named_tensors,
    parameter_readers,
    read_parameters,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
FILE = Path("model.safetensors")


def _shards(path, index=None):
    """Two shards, "a" in the first and "b" in the second, and their index."""
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, BF16)
    safetensors.numpy.save_file({"a": a}, path / "one.safetensors")
    safetensors.numpy.save_file({"b": b}, path / "two.safetensors")
    weight_map = index or {"a": "one.safetensors", "b": "two.safetensors"}
    (path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return a, b


def test_headers_and_reads_of_shards(tmp_path):
    a, b = _shards(tmp_path)
    checkpoint = SafetensorsDirectory(tmp_path)
    assert checkpoint.tensors == {
        "a": TensorInfo((2, 3), "F32", tmp_path / "one.safetensors"),
        "b": TensorInfo((4,), "BF16", tmp_path / "two.safetensors"),
    }
    np.testing.assert_array_equal(checkpoint.read("a"), a)
    np.testing.assert_array_equal(checkpoint.read("b"), b)
    assert checkpoint.read("b").dtype == BF16
    np.testing.assert_array_equal(checkpoint.read("a", (slice(1, 2), slice(0, 2))), a[1:2, 0:2])
    np.testing.assert_array_equal(checkpoint.read("b", (slice(1, 100),)), b[1:])


def test_a_single_file_wins_over_an_index(tmp_path):
    _shards(tmp_path)
    write_safetensors(tmp_path, {"c": np.zeros(1, np.float32)})
    assert list(SafetensorsDirectory(tmp_path).tensors) == ["c"]


def test_bfloat16_is_exact_and_transposed_views_are_stored_as_seen(tmp_path):
    bits = np.arange(1, 0x7F80, 3, dtype=np.uint16)[:9000].reshape(90, 100)
    tensors = {"t": bits.view(BF16).T, "scalar": np.array(2.5, np.float32)}
    write_safetensors(tmp_path, tensors)
    checkpoint = SafetensorsDirectory(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("t").view(np.uint16), bits.T)
    assert checkpoint.read("scalar") == 2.5
    assert [p.name for p in tmp_path.iterdir()] == [SINGLE_FILE]


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, BF16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transpose", [False, True])
def test_parameter_reader_casts_transposes_and_slices(tmp_path, stored, dtype, transpose):
    values = (np.arange(12).reshape(3, 4) / 8).astype(stored)
    write_safetensors(tmp_path, {"w": values})
    read = ParameterReader(
        SafetensorsDirectory(tmp_path), Placement("w", transpose), parse_dtype(dtype)
    )
    ours = values.T if transpose else values
    whole, part = read(), read((slice(1, 3), slice(0, 2)))
    assert whole.dtype == part.dtype == parse_dtype(dtype)
    assert whole.flags.c_contiguous
    np.testing.assert_array_equal(whole.astype(np.float64), ours.astype(np.float64))
    np.testing.assert_array_equal(part, whole[1:3, 0:2])


# Prints how far memory rises, at its peak, while a directory of 32 tensors is read.
_MEASURE = """
import re, sys
import jax
import numpy as np
from flexdraft_jax.checkpoints.safetensors import SafetensorsDirectory
from flexdraft_jax.checkpoints.weights import ParameterReader, Placement, read_parameters

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

def read(names):
    return read_parameters(
        {n: ParameterReader(checkpoint, Placement(n, True), np.dtype(np.float32)) for n in names}
    )

checkpoint = SafetensorsDirectory(sys.argv[1])
first, *others = checkpoint.tensors
read([first])  # starts up what is started once
before = status("VmRSS")
params = jax.block_until_ready(read(others))
print(2**10 * (status("VmHWM") - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux counts")
def test_parameters_are_read_without_a_second_copy_of_them(tmp_path):
    tensor = np.ones((1024, 1024), np.float32)
    write_safetensors(tmp_path, {str(i): tensor for i in range(33)})
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        # What is freed goes back to the system at once: what glibc would keep for later differs
        # from run to run by the size of many tensors.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)},
    )
    assert done.returncode == 0, done.stderr
    # A few more while one is read: as stored, transposed, and what checks need.
    assert 31 <= int(done.stdout) / tensor.nbytes < 36


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*no such directory"):
        SafetensorsDirectory(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["gs://bucket/model", Path("gs://bucket/model")])
def test_a_bucket_must_be_mounted_to_write(path):
    with pytest.raises(ValueError, match="^gs:/+bucket/model: .*gcsfuse"):
        write_safetensors(path, {})


def test_directory_without_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="neither model.safetensors nor .*pytorch_model.bin"):
        SafetensorsDirectory(tmp_path)


def test_shard_named_by_the_index_is_missing(tmp_path):
    _shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ValueError, match="names the shard two.safetensors, which is not there"):
        SafetensorsDirectory(tmp_path)


def test_tensor_named_by_the_index_is_in_another_shard(tmp_path):
    _shards(tmp_path, {"a": "two.safetensors", "b": "one.safetensors"})
    with pytest.raises(ValueError, match="tensor 'a' is in two.safetensors.*not hold it"):
        SafetensorsDirectory(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    a, b = _shards(tmp_path)
    safetensors.numpy.save_file({"a": a, "b": b}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="tensor 'a' is in one.safetensors as well"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object, not a list"),
        ("{}", "must hold 'weight_map'"),
        ('{"weight_map": {"a": "../other/one.safetensors"}}', "must be a file name"),
        ('{"weight_map": {"a": 3}}', "must be a file name"),
    ],
)
def test_broken_index(tmp_path, text, message):
    _shards(tmp_path)
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=message):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_truncated_file(tmp_path, cut):
    path = write_safetensors(tmp_path, {"a": np.ones(100, np.float32)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="model.safetensors: truncated, or no safetensors file"):
        SafetensorsDirectory(tmp_path)


def test_dtype_unknown_to_the_format(tmp_path):
    path = write_safetensors(tmp_path, {"a": np.ones(4, np.float32)})
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(ValueError, match="F99"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_non_finite_is_found(dtype, bad):
    values = np.linspace(-3e4, 3e4, 1000).astype(dtype)
    require_finite("w", values, FILE)
    require_finite("w", np.zeros(0, dtype), FILE)
    values[123] = bad
    with pytest.raises(ValueError, match="model.safetensors: tensor 'w': 1 of its 1000 values"):
        require_finite("w", values, FILE)


def test_the_largest_bfloat16_is_finite():
    require_finite("w", np.array([0x7F7F, 0xFF7F], np.uint16).view(BF16), FILE)


def test_overflow_in_the_cast_is_found(tmp_path):
    write_safetensors(tmp_path, {"w": np.array([1.0, 1e300])})
    checkpoint = SafetensorsDirectory(tmp_path)
    with pytest.raises(ValueError, match="tensor 'w': 1 of its 2 values.*float32"):
        ParameterReader(checkpoint, Placement("w", False), parse_dtype("float32"))()


def test_writing_nan_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="tensor 'b'"):
        write_safetensors(tmp_path, {"a": np.ones(2), "b": np.array([np.nan])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "f32", "", None, np.float32])
def test_parse_dtype_refuses(dtype):
    with pytest.raises(ValueError, match="dtype=.*must be one of 'float32', 'bfloat16'"):
        parse_dtype(dtype)


def test_parameters_that_share_a_tensor_and_tensors_that_make_up_a_parameter(tmp_path):
    """Each part of each parameter is that of the whole, and what is written is what was read."""
    rules = (
        Rule("q", "qk", transpose=True),
        Rule("k", "qk", transpose=True),
        Rule(r"experts/(\w+)", r"mlp.{}.\1", transpose=True),
    )
    shapes = {
        "q": jax.ShapeDtypeStruct((3, 4), np.float32),
        "k": jax.ShapeDtypeStruct((3, 2), np.float32),
        "experts": {"up": jax.ShapeDtypeStruct((5, 3, 2), np.float32)},
    }
    rng = np.random.default_rng(0)
    tensors = {"qk": rng.normal(size=(6, 3))} | {
        f"mlp.{i}.up": rng.normal(size=(2, 3)) for i in range(5)
    }
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    write_safetensors(tmp_path, tensors)
    checkpoint = SafetensorsDirectory(tmp_path)
    check_tensors(checkpoint, shapes, rules, ())
    readers = parameter_readers(checkpoint, shapes, rules, np.dtype(np.float32))
    params = read_parameters(readers)
    np.testing.assert_array_equal(params["q"], tensors["qk"][:4].T)
    np.testing.assert_array_equal(params["k"], tensors["qk"][4:].T)
    np.testing.assert_array_equal(params["experts"]["up"][3], tensors["mlp.3.up"].T)
    for path, leaf in flatten(params).items():
        assert readers[path].shape == leaf.shape
        index = (slice(1, 3), slice(None, 2), slice(1, None))[: leaf.ndim]
        np.testing.assert_array_equal(readers[path](index), leaf[index])
    written = named_tensors(params, shapes, rules, None)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)

    wider = shapes | {"k": jax.ShapeDtypeStruct((3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"qk: has shape \(6, 3\), expected shape \(7, 3\)"):
        check_tensors(checkpoint, wider, rules, ())
    more = shapes | {"experts": {"up": jax.ShapeDtypeStruct((6, 3, 2), np.float32)}}
    with pytest.raises(ValueError, match=r"mlp.5.up: missing, expected shape \(2, 3\)"):
        check_tensors(checkpoint, more, rules, ())
