"""The embedded default: a small target, its draft and their tokenizer, shipped with the package."""

import importlib.resources
import pathlib
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from flexdraft_jax.checkpoints.draft import load_draft
from flexdraft_jax.checkpoints.hf import load_target, load_tokenizer
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def default_directory() -> pathlib.Path:
    """Where the embedded default lies: the folder that holds `target/` and `draft/`."""
    return pathlib.Path(str(importlib.resources.files("flexdraft_jax.assets"))) / "default"


def load_default(
    *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Target, Draft, "PreTrainedTokenizerBase"]:
    """Loads the embedded default.

    >>> target, draft, tokenizer = load_default()
    >>> target.config.num_layers, draft.config.num_draft_layers, draft.config.block_size
    (8, 4, 8)
    >>> tokenizer.encode("Hi")
    [72, 105]

    Args:
        dtype: of the weights in memory; on disk they are bfloat16.
        mesh: as for `load_target`.

    Returns:
        Target, draft, and a byte-level tokenizer with a chat template.

    Raises:
        FileNotFoundError: the package was installed without its assets.
        ValueError: an unknown dtype, or a damaged checkpoint.
    """
    directory = default_directory()
    files = ("target/config.json", "target/tokenizer_config.json", "draft/config.json")
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(missing)}: this installation came without the embedded "
            "default. Install from a complete clone (pip install .), or load directories of your "
            "own with load_target and load_draft"
        )
    target = load_target(directory / "target", dtype=dtype, mesh=mesh)
    draft = load_draft(directory / "draft", target)
    return target, draft, load_tokenizer(directory / "target")
