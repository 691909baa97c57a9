"""safetensors files of a Hugging Face directory: headers at once, one tensor at a time.

A directory holds either one `model.safetensors` or several shards with a
`model.safetensors.index.json` that says which tensor lies in which shard. Where both are there
the single file is read, as Hugging Face does.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from flexdraft_jax.checkpoints.paths import (
    BucketPath,
    InputPath,
    existing_directory,
    read_json,
    require_local,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# By their names in a safetensors header. Integers and 8-bit floats mean a quantised checkpoint,
# whose scales live in other tensors: reading the numbers alone would give a wrong model.
READABLE_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def parse_dtype(dtype: str) -> np.dtype:
    """The numpy dtype of a name that a caller gave.

    Raises:
        ValueError: the name is neither "float32" nor "bfloat16".
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        shape: as stored.
        dtype: the header's name for it, such as "F32" or "BF16".
        path: the file that holds the tensor.
        offset: of its bytes in a file of a bucket.
    """

    shape: tuple[int, ...]
    dtype: str
    path: InputPath
    offset: int | None = None


class SafetensorsDirectory:
    """The tensors of a directory. Opening reads headers; `read` reads one tensor or a part of it.

    Attributes:
        directory: where the files lie.
        tensors: name -> TensorInfo, of every tensor in every file.
    """

    def __init__(self, directory: str | os.PathLike[str] | BucketPath) -> None:
        """Raises ValueError: no such directory, no safetensors in it, a shard that the index names
        is missing or lacks a tensor, a file that is truncated or no safetensors file."""
        self.directory = existing_directory(directory)
        self.tensors: dict[str, TensorInfo] = {}
        self._last = ""
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        index = self._read_index()
        for path in sorted({self.directory / shard for shard in index.values()}) or [
            self.directory / SINGLE_FILE
        ]:
            self._read_header(path)
        for name, shard in index.items():
            if name not in self.tensors or self.tensors[name].path.name != shard:
                raise ValueError(
                    f"{self.directory / INDEX_FILE}: says that tensor {name!r} is in {shard}, "
                    "which does not hold it"
                )

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """One tensor (or `index` of it), in its stored shape and dtype; nothing else is read."""
        info = self.tensors[name]
        if isinstance(info.path, BucketPath):
            if name != self._last:
                self._last, self._rows = name, {}
            return self._read_from_bucket(info.path, info, index or ())
        try:
            # Opened anew for each tensor: the pages of an open file stay mapped once they are
            # read, so that the process would seem to hold the whole checkpoint twice.
            with safetensors.safe_open(info.path, framework="numpy") as file:
                if index is None or not info.shape:
                    return file.get_tensor(name)
                # The library refuses a slice that ends behind the last row; Python clips it.
                clipped = (
                    slice(*part.indices(size)) for part, size in zip(index, info.shape, strict=True)
                )
                return file.get_slice(name)[tuple(clipped)]
        except safetensors.SafetensorError as error:
            raise ValueError(f"{info.path}: cannot read tensor {name!r}: {error}") from error

    def _read_from_bucket(
        self, path: BucketPath, info: TensorInfo, index: tuple[slice, ...]
    ) -> np.ndarray:
        """Rows are read whole, and once for all devices that hold some of their columns."""
        assert info.offset is not None
        dtype = READABLE_DTYPES[info.dtype]
        if not index or not info.shape:
            nbytes = math.prod(info.shape) * dtype.itemsize
            data = path.read_bytes(info.offset, info.offset + nbytes)
            return np.frombuffer(data, dtype).reshape(info.shape)
        first, stop, _ = index[0].indices(info.shape[0])
        if (first, stop) not in self._rows:
            row = math.prod(info.shape[1:]) * dtype.itemsize
            data = path.read_bytes(info.offset + first * row, info.offset + stop * row)
            self._rows[first, stop] = np.frombuffer(data, dtype).reshape(-1, *info.shape[1:])
        return self._rows[first, stop][(slice(None), *index[1:])]

    def _read_index(self) -> dict[str, str]:
        """Tensor -> shard; empty for a single file."""
        path = self.directory / INDEX_FILE
        if (self.directory / SINGLE_FILE).is_file():
            return {}
        if not path.is_file():
            found = sorted(p.name for p in self.directory.iterdir())
            raise ValueError(
                f"{self.directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; "
                f"it holds {', '.join(found[:10]) or 'nothing'}"
            )
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{path}: must hold 'weight_map', from tensor names to file names")
        for name, shard in weight_map.items():
            # Shards lie beside their index; anything else could lead out of the directory.
            if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
                raise ValueError(f"{path}: weight_map[{name!r}]={shard!r}: must be a file name")
        for shard in sorted(set(weight_map.values())):
            if not (self.directory / shard).is_file():
                raise ValueError(f"{path}: names the shard {shard}, which is not there")
        return weight_map

    def _read_header(self, path: InputPath) -> None:
        for name, info in _header(path).items():
            if name in self.tensors:
                other = self.tensors[name].path.name
                raise ValueError(f"{path}: tensor {name!r} is in {other} as well")
            self.tensors[name] = info


def _header(path: InputPath) -> dict[str, TensorInfo]:
    """What a file holds."""
    found = {}
    try:
        if isinstance(path, BucketPath):
            # Its length, the header, and all tensors one after the other.
            begin = 8 + int.from_bytes(path.read_bytes(0, 8), "little")
            header = json.loads(path.read_bytes(8, begin))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, _ = entry["data_offsets"]
                found[name] = TensorInfo(tuple(entry["shape"]), entry["dtype"], path, begin + start)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            path.read_bytes(begin + max(end, 1) - 1, begin + end)  # So long it must be.
        else:
            with safetensors.safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    view = file.get_slice(name)
                    found[name] = TensorInfo(tuple(view.get_shape()), view.get_dtype(), path)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: truncated, or no safetensors file: {error}") from error
    return found


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes `value` so that two saves of the same thing are the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_safetensors(
    directory: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]
) -> pathlib.Path:
    """Writes `model.safetensors`, whole or not at all, and returns its path.

    Raises:
        ValueError: a tensor holds NaN or infinity, which loading would refuse, or the directory is
            a URL.
    """
    require_local(directory)
    path = pathlib.Path(directory) / SINGLE_FILE
    for name, tensor in tensors.items():
        require_finite(name, tensor, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # The library writes the buffer as it lies in memory: a transposed view would be stored
    # scrambled, with no error.
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    partial.touch()
    usual_mode = partial.stat().st_mode
    # transformers refuses files without this entry.
    safetensors.numpy.save_file(contiguous, partial, metadata={"format": "pt"})
    partial.chmod(usual_mode)  # The library's own lets nobody but the owner read the file.
    os.replace(partial, path)
    return path


def require_finite(name: str, tensor: np.ndarray, path: InputPath) -> None:
    """ValueError that names the file and the tensor if it holds NaN or infinity."""
    if not _all_finite(tensor):
        bad = int(tensor.size - np.isfinite(tensor).sum())
        raise ValueError(
            f"{path}: tensor {name!r}: {bad} of its {tensor.size} values are NaN or infinite as "
            f"{tensor.dtype}; weights must be finite"
        )


def _all_finite(tensor: np.ndarray) -> bool:
    if tensor.dtype != DTYPES["bfloat16"] or not tensor.size:
        return bool(np.isfinite(tensor).all())
    # isfinite takes 5 ns a value on bfloat16, 40 s on an 8B model. NaN and infinity are the
    # largest bit patterns of either sign, and integers have a fast maximum.
    positive, negative = tensor.view(np.int16).max(), tensor.view(np.uint16).max()
    return bool(positive < 0x7F80 and negative < 0xFF80)
