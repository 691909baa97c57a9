"""Models by directory, as scripts take them."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh
from matplotlib.backend_bases import FigureCanvasBase
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


def check_outputs(
    *paths: str | os.PathLike[str] | None, others: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Finds what keeps files from being written, before anything is measured for them.

    Args:
        paths: of the files; None is no file.
        others: that must not be overwritten.

    Raises:
        ValueError: one has no directory, is a directory, can't be written, or is another one of all
            these.
    """
    taken = {pathlib.Path(other).resolve() for other in others}
    for path in (pathlib.Path(path) for path in paths if path is not None):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no directory {path.parent}")
        if path.is_dir():
            raise ValueError(f"{path}: must be a file, and is a directory")
        file = path.resolve()  # A link may be to a file that is not there yet.
        # Such as /dev/null may be named twice.
        if file in taken and (path.is_file() or not path.exists()):
            raise ValueError(f"{path}: must be a file of its own, and is another one of this run")
        taken.add(file)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(f"{path}: can't be written")


def check_plot(path: str | None) -> None:
    """Raises ValueError for a file whose ending names no kind of picture."""
    known = FigureCanvasBase.get_supported_filetypes()
    if path is not None and pathlib.Path(path).suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"{path}: must end in one of .{', .'.join(sorted(known))}")


def integers(flag: str, values: Sequence[str], smallest: int = 1) -> tuple[int, ...]:
    """The numbers of a flag that takes a list of them.

    Raises:
        ValueError: something else, a number below the smallest, or none; the flag is named.
    """
    try:
        found = tuple(map(int, values))
    except ValueError:
        found = ()
    if not found or min(found) < smallest:
        raise ValueError(
            f"--{flag}={','.join(values)}: must be integers with commas between them, each at "
            f"least {smallest}"
        )
    return found


def numbers(flag: str, values: Sequence[str], smallest: float = 0.0) -> tuple[float, ...]:
    """As `integers`, for numbers with or without a fraction."""
    try:
        found = tuple(map(float, values))
    except ValueError:
        found = ()
    if not found or not all(smallest <= number < math.inf for number in found):
        raise ValueError(
            f"--{flag}={','.join(values)}: must be numbers with commas between them, each at "
            f"least {smallest:g}"
        )
    return found


@contextlib.contextmanager
def bad_input_exits() -> Iterator[None]:
    """Ends a script with one line instead of a traceback where its input is at fault."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
