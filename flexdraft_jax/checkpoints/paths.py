"""Where checkpoints are read from: directories of the file system, or of a bucket."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What is nested near to Python's own limit may be read, and then neither shown nor written.
MAX_DEPTH = 100
_BUCKET = re.compile(r"(gs|file):/+")


@dataclass(frozen=True, order=True)
class BucketPath:
    """A file or directory of a bucket, read through tensorstore; as much of a `Path` as is needed.

    Attributes:
        url: such as "gs://bucket/Qwen3-8B"; "file:///.." is the file system, for trying this out.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> BucketPath:
        return BucketPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    def is_dir(self) -> bool:
        """Whether any file lies in it."""
        return bool(_store(self.url).list().result())

    def is_file(self) -> bool:
        """Whether it is there."""
        return self in self._parent.iterdir()

    def iterdir(self) -> Iterator[BucketPath]:
        """Files in it, but not those of directories in it."""
        for key in _store(self.url).list().result():
            if b"/" not in key:
                yield self / key.decode()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.read_bytes().decode(encoding)

    def read_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """A part of the file; nothing else is read.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is shorter.
        """
        if start == stop:
            return b""
        found = _store(self._parent.url).read(self.name, byte_range=slice(start, stop)).result()
        if found.state != "value":
            raise FileNotFoundError(self.url)
        return found.value

    @property
    def _parent(self) -> BucketPath:
        return BucketPath(self.url.rpartition("/")[0])


InputPath = pathlib.Path | BucketPath


def input_path(path: str | os.PathLike[str] | BucketPath) -> InputPath:
    """A path of the file system, or of a bucket (gs://).

    Raises:
        ValueError: some other URL.
        TypeError: no path.
    """
    if isinstance(path, BucketPath):
        return path
    _require_path(path)
    text = os.fspath(path)
    scheme = _BUCKET.match(text)
    if scheme is None:
        require_local(path)
        return pathlib.Path(path)
    # pathlib makes one slash of two.
    slashes = "//" if scheme[1] == "gs" else "///"
    return BucketPath(f"{scheme[1]}:{slashes}{text[scheme.end() :].rstrip('/')}")


def existing_directory(directory: str | os.PathLike[str] | BucketPath) -> InputPath:
    """`directory` as a path; ValueError if there is none."""
    path = input_path(directory)
    if not path.is_dir():
        raise ValueError(f"directory={str(directory)!r}: there is no such directory")
    return path


def require_local(path: str | os.PathLike[str]) -> None:
    """ValueError if the path is a URL, which would become a folder named "gs:"."""
    _require_path(path)
    if re.match(r"[a-z0-9]{2,}:/", os.fspath(path)):
        raise ValueError(
            f"{os.fspath(path)}: must be a path of the file system; mount the bucket (gs://: "
            "gcsfuse --implicit-dirs BUCKET DIRECTORY), on every host"
        )


def _require_path(path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"directory={path!r}: must be a path")


def read_json(path: InputPath) -> dict[str, Any]:
    """A JSON object; ValueError if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path}: there is no such file") from None
    except (ValueError, RecursionError) as error:  # broken JSON, bytes that are not UTF-8, depth
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    if depth_of(value) > MAX_DEPTH:
        raise ValueError(f"{path}: must be nested at most {MAX_DEPTH} deep")
    return value


def depth_of(value: Any) -> int:
    """How deep lists and objects are nested; 0 of a number."""
    depth, level = 0, [value]
    while level := [x for x in level if isinstance(x, list | dict)]:
        depth += 1
        level = [x for one in level for x in (one.values() if isinstance(one, dict) else one)]
    return depth


@functools.cache
def _store(directory: str) -> Any:
    import tensorstore  # Takes a while, and whoever reads no bucket never needs it.

    return tensorstore.KvStore.open(urllib.parse.quote(directory, safe=":/") + "/").result()
