"""Lines of a JSONL file as token ids, stored in chunks so that an interrupted run can go on.

DIRECTORY/00000.npz    the first thousand lines that are not blank, whole or not there at all
DIRECTORY/00001.npz    ...
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import EncodedTurn, Message, encode_conversation
from flexdraft_jax.data.conversations import (
    Conversation,
    Document,
    PlainText,
    Rejected,
    Tokenized,
    parse_line,
    read_lines,
    reject,
)
from flexdraft_jax.data.fingerprints import tokenizer_fingerprint

CHUNK_LINES = 1000


@dataclasses.dataclass(frozen=True)
class RejectedLine:
    """A line that can't be used, and where it stands.

    Attributes:
      line: number, from 1.
      rejected: why.
    """

    line: int
    rejected: Rejected


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some lines' documents, D of them with N tokens together.

    Attributes:
      tokens: [N] int32, one document after another.
      response_mask: [N] bool, True at tokens that the assistant writes.
      lengths: [D] int64, tokens of each document.
      keys: [D] uint64, hash of the prompt; all documents of a conversation have the same.
      opens: [D] bool, whether the document begins with a prompt that could be held out.
      domains: [D] str, kind of text.
      num_lines: lines read, used or not.
      num_used: lines used.
      rejected: the others.
    """

    tokens: NDArray[np.int32]
    response_mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    keys: NDArray[np.uint64]
    opens: NDArray[np.bool_]
    domains: NDArray[np.str_]
    num_lines: int
    num_used: int
    rejected: tuple[RejectedLine, ...]

    def documents(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        """Token ids and response mask of each document."""
        ends = np.cumsum(self.lengths)
        for start, end in zip(ends - self.lengths, ends, strict=True):
            yield self.tokens[start:end], self.response_mask[start:end]


def encode_lines(
    path: str | os.PathLike[str],
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    template_kwargs: Mapping[str, Any],
    advance: Callable[[int], None],
) -> list[Path]:
    """Encodes a file into chunks; those that are there already are kept.

    Args:
      path: of the JSONL file.
      directory: for the chunks; belongs to one file, tokenizer and set of arguments.
      tokenizer: of the target.
      length: T, tokens in a row; a document whose response begins behind them is rejected.
      template_kwargs: variables of the chat template.
      advance: called with the number of lines that were just finished.

    Returns:
      The chunks' files, in order.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fingerprint = tokenizer_fingerprint(tokenizer)

    def encode(document: Document) -> list[EncodedTurn]:
        documents = _encode(document, tokenizer, fingerprint, template_kwargs)
        return _that_fit(documents, length)

    files: list[Path] = []
    lines = read_lines(path)
    while group := list(islice(lines, CHUNK_LINES)):
        file = directory / f"{len(files):05d}.npz"
        if not file.exists():
            _save(file, _chunk(group, encode))
        files.append(file)
        advance(len(group))
    return files


def load_chunk(path: Path) -> Chunk:
    """Reads what :func:`encode_lines` wrote.

    Raises:
      ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:  # A zip file, with checksums.
            fields = {name: arrays[name] for name in arrays.files}
        counts = json.loads(str(fields.pop("counts")))
        rejected = tuple(
            RejectedLine(line, Rejected(reason, start))
            for line, reason, start in counts["rejected"]
        )
        return Chunk(
            **fields, num_lines=counts["lines"], num_used=counts["used"], rejected=rejected
        )
    except Exception as error:  # Of zip files, of NumPy, of a field that is not there.
        raise ValueError(
            f"{path}: is damaged ({type(error).__name__}: {error}); remove it, and it is made again"
        ) from error


def prompt_key(document: Document) -> int:
    """A 64-bit hash of what comes before the first response."""
    messages: Sequence[Message] = () if isinstance(document, PlainText) else document.messages
    roles = [message.role for message in messages]
    head = messages[: roles.index("assistant")] if "assistant" in roles else messages
    content: Any = [(message.role, message.content) for message in head]
    if isinstance(document, PlainText):
        content = document.text
    elif isinstance(document, Tokenized) and not messages:
        content = document.turn.prompt_tokens
    return int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:8], "big")


def _chunk(
    lines: Iterable[tuple[int, bytes]], encode: Callable[[Document], list[EncodedTurn]]
) -> Chunk:
    turns: list[EncodedTurn] = []
    about: list[tuple[int, bool, str]] = []
    rejected = []
    num_lines = 0
    for number, line in lines:
        num_lines += 1
        try:
            document = parse_line(line)
            encoded = encode(document)
        except ValueError as error:
            rejected.append(RejectedLine(number, reject(line, str(error))))
            continue
        key = prompt_key(document)
        for index, turn in enumerate(encoded):
            opens = index == 0 and not isinstance(document, PlainText)
            turns.append(turn)
            about.append((key, opens and not turn.response_mask[0], document.domain))
    keys, opens_, domains = zip(*about, strict=True) if about else ((), (), ())
    return Chunk(
        tokens=np.array([token for turn in turns for token in turn.tokens], np.int32),
        response_mask=np.array([mark for turn in turns for mark in turn.response_mask], np.bool_),
        lengths=np.array([len(turn.tokens) for turn in turns], np.int64),
        keys=np.array(keys, np.uint64),
        opens=np.array(opens_, np.bool_),
        domains=np.array(domains, np.str_),
        num_lines=num_lines,
        num_used=num_lines - len(rejected),
        rejected=tuple(rejected),
    )


def _save(path: Path, chunk: Chunk) -> None:
    fields = {field.name: getattr(chunk, field.name) for field in dataclasses.fields(chunk)}
    counts = {
        "lines": fields.pop("num_lines"),
        "used": fields.pop("num_used"),
        "rejected": [
            (bad.line, bad.rejected.reason, bad.rejected.start) for bad in fields.pop("rejected")
        ],
    }
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, counts=np.array(json.dumps(counts)), **fields)
    unfinished.rename(path)


def _encode(
    document: Document,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    template_kwargs: Mapping[str, Any],
) -> list[EncodedTurn]:
    if isinstance(document, Conversation):
        return encode_conversation(tokenizer, document.messages, template_kwargs)
    if isinstance(document, PlainText):
        tokens = list(tokenizer(document.text)["input_ids"])
        # What a tokenizer puts before every text is not written by the model.
        return [EncodedTurn(tokens, [token != tokenizer.bos_token_id for token in tokens])]
    if document.tokenizer not in ("", fingerprint):
        raise ValueError(
            f"tokens of another tokenizer: {document.tokenizer}, this one is {fingerprint}"
        )
    largest = max(document.turn.tokens)
    if largest >= len(tokenizer):
        raise ValueError(
            f"token id outside the vocabulary: {largest}, the tokenizer has {len(tokenizer)}"
        )
    return [document.turn]


def _that_fit(documents: list[EncodedTurn], length: int) -> list[EncodedTurn]:
    """The documents with a response within a row."""
    fit = [document for document in documents if any(document.response_mask[:length])]
    if not fit:
        begin = len(documents[0].prompt_tokens)
        raise ValueError(
            f"prompt too long: the response begins behind {begin} tokens, a row has {length}"
        )
    return fit
