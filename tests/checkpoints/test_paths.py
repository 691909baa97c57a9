"""Reading from a bucket, for which a directory stands in: tensorstore reads both alike."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from flexdraft_jax.assets import default_directory
from flexdraft_jax.checkpoints.paths import BucketPath, input_path
from flexdraft_jax.checkpoints.safetensors import INDEX_FILE, SINGLE_FILE, SafetensorsDirectory
from flexdraft_jax.evaluation.loading import load_models


def bucket(path):
    return f"file://{path}"


def test_urls():
    for path in ("gs://bucket/a/model/", Path("gs://bucket/a/model")):
        assert input_path(path) == BucketPath("gs://bucket/a/model")
    assert input_path("model") == Path("model")
    with pytest.raises(ValueError, match="^s3:/+bucket: must be a path of the file system"):
        input_path("s3://bucket")


def test_models_are_what_they_are_in_a_directory():
    directory = default_directory()
    here = load_models(directory / "target", directory / "draft")
    there = load_models(bucket(directory / "target"), bucket(directory / "draft"))
    assert there.target.config == here.target.config and there.name == here.name
    for mine, other in zip(
        jax.tree.leaves((here.target.params, here.draft.params)),
        jax.tree.leaves((there.target.params, there.draft.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, other)
    assert there.tokenizer("Two 2s") == here.tokenizer("Two 2s")
    assert there.tokenizer.chat_template == here.tokenizer.chat_template


def test_no_more_is_read_than_rows(tmp_path, monkeypatch):
    stored = np.arange(24, dtype=np.float16).reshape(6, 4)
    safetensors.numpy.save_file({"a": stored, "b": np.array(3, np.float32)}, tmp_path / "x")
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "x", "b": "x"}}))
    checkpoint = SafetensorsDirectory(bucket(tmp_path))
    sizes = []
    read = BucketPath.read_bytes

    def counting(*args):
        sizes.append(len(read(*args)))
        return read(*args)

    monkeypatch.setattr(BucketPath, "read_bytes", counting)
    np.testing.assert_array_equal(checkpoint.read("a"), stored)
    for columns in (slice(0, 2), slice(2, 100)):
        part = checkpoint.read("a", (slice(1, 3), columns))
        np.testing.assert_array_equal(part, stored[1:3, columns])
    assert checkpoint.read("b", ()) == 3
    assert sizes == [48, 16, 4]  # The other columns of the same rows are there already.


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*no such directory"):
        SafetensorsDirectory(bucket(tmp_path / "nowhere"))
    (tmp_path / "other").touch()
    with pytest.raises(ValueError, match="holds neither .*; it holds other"):
        SafetensorsDirectory(bucket(tmp_path))
    file = tmp_path / SINGLE_FILE
    safetensors.numpy.save_file({"a": np.ones(9, np.float32)}, file)
    whole = file.read_bytes()
    for wrong in (whole[:-1], whole[:20], whole[:4], b"", b"\x08" + bytes(7) + b"no json."):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match="truncated, or no safetensors file"):
            SafetensorsDirectory(bucket(tmp_path))
