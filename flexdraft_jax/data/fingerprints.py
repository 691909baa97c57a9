"""What stored work belongs to: fingerprints of files and models, and a file of settings."""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.checkpoints.paths import read_json, require_local
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.processes import to_host

# Settings that are recorded as hashes, and what it means that one is another.
_IN_WORDS = {
    "input": "the input has other content",
    "target": "the target is another one",
    "tokenizer": "the tokenizer or its chat template is another one",
}
_PROBE = "What is 2 + 2?\n\té 水 🙂  <|x|> don't DON'T 1234567.89"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that changes with the vocabulary, the way text is split, and the chat template."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = (vocabulary, tokenizer(_PROBE)["input_ids"], tokenizer.chat_template)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def target_fingerprint(target: Target) -> str:
    """A hash of the target's configuration and weights, whichever dtype they were loaded in.

    Of weights on a mesh over several processes, all of them have to ask.
    """
    digest = hashlib.sha256(repr(target.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(target.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(to_host(leaf).astype(jnp.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_recorded(path: Path, settings: dict[str, Any]) -> None:
    """Records what work was begun with, or checks that it goes on with the same.

    Raises:
      ValueError: the file at `path` says otherwise, or is damaged.
    """
    if not path.exists():
        write_json(path, settings)
        return
    before = read_settings(path)
    different = [name for name, value in settings.items() if not _is_same(before.get(name), value)]
    if different:
        raise ValueError(
            f"{path} belongs to something else: "
            + "; ".join(
                _IN_WORDS[name]
                if name in _IN_WORDS and name in before
                else f"{name} was {before.get(name)}, is {settings[name]}"
                for name in different
            )
            + "; choose another output, or remove all that this one has left"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """What work was begun with.

    Raises:
      ValueError: the file at `path` is damaged.
    """
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; restore it, or choose another output: this one was begun with settings "
            "that nobody knows"
        ) from error


def _is_same(before: Any, value: Any) -> bool:
    # As they are in JSON: NaN there is equal to NaN, and a tuple to a list.
    return before == value or json.dumps(before) == json.dumps(value)


def settings_path(output: Path) -> Path:
    """Where it is recorded what a file is made with."""
    return output.with_name(f"{output.name}.settings.json")


def refuse_other_files(output: Path, parts: Sequence[Path] = ()) -> None:
    """Sees to it that nothing of somebody else is overwritten; changes nothing.

    Raises:
      ValueError: the file or a part of it is there, and nobody has recorded with which settings.
    """
    require_local(output)
    # Asked in this order, as another process may begin just now: with its settings.
    begun = [path for path in (output, *parts) if path.exists()]
    if output in begun and output.is_file() and not output.stat().st_size:
        begun.remove(output)  # As its lock makes it.
    if begun and not settings_path(output).exists():
        raise ValueError(
            f"{begun[0]}: there is another file of that name, or work begun with settings that "
            "nobody knows"
        )


def claim_output(output: Path, settings: dict[str, Any], parts: Sequence[Path] = ()) -> None:
    """Records beside a file what it is made with, or checks that it is what it was.

    Who holds the lock of the file calls it, so that the settings are those of who writes.

    Args:
      output: the file; it need not be there.
      settings: what it is made with.
      parts: of it, which need not be there either.

    Raises:
      ValueError: the file was begun with other settings, or is some other file.
    """
    refuse_other_files(output, parts)
    output.parent.mkdir(parents=True, exist_ok=True)
    check_recorded(settings_path(output), settings)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file that is whole or not there at all."""
    # Several processes may write the same, those of other hosts too.
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    unfinished.replace(path)
