"""Directories to break: copies of the references and goldens with a few things changed."""

import json
import pathlib
import shutil

import pytest
import safetensors.numpy

TESTS = pathlib.Path(__file__).parents[1]


class Directory:
    """A checkpoint directory that a test may edit."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def config(self, remove=(), **changes) -> "Directory":
        """Changes fields of config.json; a field named in `remove` goes."""
        file = self.path / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))
        return self

    def tensors(self, edit) -> "Directory":
        """Hands the dict of tensors to `edit`, which changes it in place."""
        file = self.path / "model.safetensors"
        tensors = safetensors.numpy.load_file(file)
        edit(tensors)
        safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
        return self


@pytest.fixture
def copy_of(tmp_path):
    """copy_of("references/qwen2-tied") is an editable copy of that folder of tests/."""

    def copy(name: str) -> Directory:
        path = tmp_path / "copies" / name
        shutil.copytree(TESTS / name, path)
        return Directory(path)

    return copy
