"""Packed rows on disk: a TFDS builder that needs no TensorFlow.

Rows are written once, as array_record files under `data_dir`, and found again by the name of their
source, its fingerprint and the length of a row.
"""

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from numpy.typing import NDArray

from flexdraft_jax.data.chat import EncodedTurn
from flexdraft_jax.data.pipeline import RowSource, packed_rows

_MIN_LENGTH = 8


@dataclass(frozen=True)
class TurnSource:
    """Where documents come from.

    Attributes:
      name: letters, digits and underscores; part of the folder's name.
      fingerprint: changes whenever the documents do; rows are reused while it stays the same.
      splits: for each split ("train", "held_out", ...), a function that yields its documents. They
        are called only if the rows are not on disk yet.
    """

    name: str
    fingerprint: str
    splits: Mapping[str, Callable[[], Iterable[EncodedTurn]]]

    def __post_init__(self) -> None:
        for field_name in ("name", "fingerprint"):
            value = getattr(self, field_name)
            if not re.fullmatch(r"\w+", value):
                raise ValueError(
                    f"{field_name} must be letters, digits and underscores, got {value!r}"
                )
        if not self.splits:
            raise ValueError("splits must name at least one split, got none")


def prepare_rows(
    source: TurnSource, *, length: int, data_dir: str | os.PathLike[str]
) -> dict[str, RowSource]:
    """Packs and writes the rows of every split, or finds them on disk.

    Writing goes to a temporary folder that is renamed when whole, so an interrupted build leaves
    nothing behind that could be taken for rows. On several processes, let one of them build before
    the others call this.

    Args:
      source: the documents.
      length: T, tokens in a row.
      data_dir: folder for all prepared rows.

    Returns:
      The rows of each split.

    Raises:
      ValueError: if `length` is too small to hold a turn or a split has no documents.
    """
    if length < _MIN_LENGTH:
        raise ValueError(f"length must be at least {_MIN_LENGTH} tokens, got {length}")
    config = PackedTurnsConfig(
        name=f"{source.name}-{source.fingerprint}-{length}", source=source, length=length
    )
    with _quiet_tfds():
        builder = PackedTurns(
            config=config, data_dir=os.fspath(data_dir), file_format="array_record"
        )
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return {split: _StoredRows(builder.as_data_source(split)) for split in source.splits}


def load_rows(directory: str | os.PathLike[str]) -> dict[str, RowSource]:
    """Opens the rows of one dataset that :func:`prepare_rows` wrote, by split.

    Args:
      directory: where the dataset's own files lie, `features.json` among them.
    """
    with _quiet_tfds():
        builder = tfds.builder_from_directory(os.fspath(directory))
        return {split: _StoredRows(builder.as_data_source(split)) for split in builder.info.splits}


@dataclass
class PackedTurnsConfig(tfds.core.BuilderConfig):
    """What a :class:`PackedTurns` dataset is made of."""

    source: TurnSource | None = field(default=None, repr=False)
    length: int = 0


class PackedTurns(tfds.core.GeneratorBasedBuilder):
    """Rows of packed chat turns; see :class:`flexdraft_jax.data.pipeline.PackedRows`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (self.builder_config.length,)
        features = {
            name: tfds.features.Tensor(shape=shape, dtype=dtype)
            for name, dtype in (
                ("tokens", np.int32),
                ("segment_ids", np.int32),
                ("positions", np.int32),
                ("response_mask", np.bool_),
            )
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rows of packed chat turns with segments, positions and a response mask.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the loader shuffles, with a seed of its own
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing is downloaded
        splits = self.builder_config.source.splits
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        config = self.builder_config
        rows = 0
        for row in packed_rows(config.source.splits[split](), config.length):
            yield rows, row.arrays()
            rows += 1
        if not rows:
            raise ValueError(f"splits[{split!r}] must hold at least one turn, got none")


@contextmanager
def _quiet_tfds() -> Iterator[None]:
    # TFDS speaks of downloads, and warns of every configuration made at run time.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)


class _StoredRows:
    """Rows of one split, read by index."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any, /) -> Mapping[str, NDArray[Any]]:
        return self._source[index]
