"""Models by directory, as scripts take them."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.assets import load_default
from flexdraft_jax.checkpoints.draft import load_draft
from flexdraft_jax.checkpoints.hf import load_target, load_tokenizer
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target


@dataclasses.dataclass(frozen=True)
class Models:
    """Everything that turns a prompt into text.

    Attributes:
        target: the model.
        draft: its draft; None where only plain decoding was asked for.
        tokenizer: of the target.
        name: for headings.
    """

    target: Target
    draft: Draft | None
    tokenizer: PreTrainedTokenizerBase
    name: str


def load_models(
    target_directory: str | os.PathLike[str] | None = None,
    draft_directory: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Models:
    """Loads two directories, or the embedded default where neither is named.

    Args:
        target_directory: a Hugging Face directory with a tokenizer.
        draft_directory: a draft in the published format; may be left out for plain decoding.
        dtype: of the weights in memory.
        mesh: as for `load_target`.

    Raises:
        ValueError: a draft without a target, a target directory without a tokenizer, or a
            directory or a file in it that is missing or broken.
        FileNotFoundError: neither is named, and the package was installed without its assets.
    """
    if target_directory is None:
        if draft_directory is not None:
            raise ValueError(
                f"draft_directory={os.fspath(draft_directory)!r} without target_directory: a draft "
                "belongs to one target; name both, or neither for the embedded default"
            )
        target, default_draft, tokenizer = load_default(dtype=dtype, mesh=mesh)
        return Models(target, default_draft, tokenizer, "embedded default")
    target = load_target(target_directory, dtype=dtype, mesh=mesh)
    draft = None if draft_directory is None else load_draft(draft_directory, target)
    name = pathlib.Path(target_directory).resolve().name
    return Models(target, draft, load_tokenizer(target_directory), name)


def check_output(path: str | None) -> None:
    """Raises ValueError where a file could not be written, before anything is measured for it."""
    if path is not None and not pathlib.Path(path).absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no directory {pathlib.Path(path).parent}")


@contextlib.contextmanager
def bad_input_exits() -> Iterator[None]:
    """Ends a script with one line instead of a traceback where its input is at fault."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
