"""Short names for files and tokenizers: does stored work still belong to them?"""

import hashlib
import os

from transformers import PreTrainedTokenizerBase

_HEAD_BYTES = 1 << 20
_PROBE = "What is 2 + 2?\n\té 水 🙂  <|x|> don't DON'T 1234567.89"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash that changes with the vocabulary, the way text is split, and the chat template."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = (vocabulary, tokenizer(_PROBE)["input_ids"], tokenizer.chat_template)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Size and a hash of the first megabyte: quick however long the file is."""
    with open(path, "rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()[:16]
    return f"{os.path.getsize(path)}-{head}"


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
