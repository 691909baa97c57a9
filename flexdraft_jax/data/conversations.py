"""Conversations in JSONL files: one object a line, in any of a few shapes.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    {"prompt": "Hi", "response": "Hello"}
    {"text": "Once upon a time"}
    {"tokens": [5, 7, 9], "response_mask": [false, true, true]}

Beside these fields a line may name its `domain`; other fields are ignored. What is wrong with a
line is a ValueError that begins with a kind, then a colon and what was found, so that errors can be
counted by kind.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast, get_args

from flexdraft_jax.data.chat import EncodedTurn, Message, Role

# Longer lines are not conversations; one without an end must not fill the memory.
MAX_LINE_BYTES = 10_000_000
_SHOWN_CHARACTERS = 200
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """Messages of user and assistant in turn, perhaps a system message before them.

    Attributes:
      messages: at least one of the user; the last may still be unanswered.
      domain: kind of text, "" if the line does not say.
    """

    messages: tuple[Message, ...]
    domain: str = ""


@dataclass(frozen=True)
class PlainText:
    """Text that is no conversation: all of it counts as response.

    Attributes:
      text: not empty.
      domain: kind of text, "" if the line does not say.
    """

    text: str
    domain: str = ""


@dataclass(frozen=True)
class Tokenized:
    """A document as token ids, because decoding and encoding again can change them.

    Attributes:
      turn: token ids and response mask.
      messages: the same as text, for people and to tell prompts apart; may be empty.
      tokenizer: fingerprint of the tokenizer that the ids are of, "" if the line does not say.
      domain: kind of text, "" if the line does not say.
    """

    turn: EncodedTurn
    messages: tuple[Message, ...] = ()
    tokenizer: str = ""
    domain: str = ""


Document = Conversation | PlainText | Tokenized


@dataclass(frozen=True)
class Rejected:
    """A line that can't be used.

    Attributes:
      reason: a kind, a colon and what was found.
      start: the line's first 200 characters.
    """

    reason: str
    start: str

    @property
    def kind(self) -> str:
        """The part of the reason that lines with the same fault share."""
        return self.reason.partition(":")[0]


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Yields number (from 1) and bytes of every line that is not blank.

    Of a line over `MAX_LINE_BYTES` only a beginning of more than that comes. Byte order marks
    before lines are left out: files that were put together have some inside.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1 + len(_BYTE_ORDER_MARK)):
            number += 1
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line) > MAX_LINE_BYTES:
                _skip_rest(file, line)
            if line.strip():
                yield number, line


def whole_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields every line but one that an interruption has left without its end."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def keep_whole_lines(path: str | os.PathLike[str], count: int | None = None) -> None:
    """Cuts a file off behind that many lines, or behind the last whole one; makes it if need be."""
    open(path, "ab").close()
    os.truncate(path, sum(map(len, itertools.islice(whole_lines(path), count))))


def count_lines(path: str | os.PathLike[str]) -> int:
    """How many lines :func:`read_lines` yields."""
    return sum(1 for _ in read_lines(path))


def reject(line: bytes, reason: str) -> Rejected:
    """Marks a line as not to be used."""
    # A character takes four bytes at most.
    start = line[: 4 * _SHOWN_CHARACTERS].decode(errors="replace")[:_SHOWN_CHARACTERS]
    return Rejected(reason, start.rstrip("\r\n"))


def parse_line(line: bytes) -> Document:
    """Reads one line in any of the shapes above.

    Raises:
      ValueError: it is in none of them.
    """
    fields = parse_object(line)
    domain = _text(fields.get("domain", ""), "domain")
    if "tokens" in fields:
        return _tokenized(fields, domain)
    if "messages" in fields:
        return Conversation(parse_messages(fields["messages"]), domain)
    if "conversations" in fields:
        messages = _messages(fields["conversations"], "conversations", ("from", "value"))
    elif "prompt" in fields:
        sides = {"user": "prompt", "assistant": "response"}
        messages = tuple(
            Message(cast(Role, role), _text(fields[side], side))
            for role, side in sides.items()
            if side in fields
        )
    elif "text" in fields:
        text = _text(fields["text"], "text")
        if not text.strip():
            raise ValueError("empty text: 'text' holds nothing but whitespace")
        return PlainText(text, domain)
    else:
        known = "messages, conversations, prompt, text or tokens"
        raise ValueError(f"no known field: needs {known}, has {', '.join(fields) or 'none'}"[:300])
    _check_turns(messages)
    return Conversation(messages, domain)


def parse_object(line: bytes) -> dict[str, Any]:
    """Reads the JSON object of one line.

    Raises:
      ValueError: there is none, or an object has a field twice.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"line too long: more than {MAX_LINE_BYTES} bytes")
    twice: list[str] = []

    def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read_fields = dict(pairs)
        if len(read_fields) < len(pairs):
            twice.append(Counter(name for name, _ in pairs).most_common(1)[0][0])
        return read_fields

    try:
        # Without its end, or an error there would be on line 2.
        fields = json.loads(line.decode().rstrip("\r\n"), object_pairs_hook=read)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except ValueError as error:  # Python's words are about a setting of Python.
        raise ValueError("not JSON that can be read: an integer has too many digits") from error
    if not isinstance(fields, dict):
        raise ValueError(f"not an object: {_named(fields)} in place of one")
    if twice:
        raise ValueError(f"a field that is there twice: {shown(twice[0])}")
    return fields


def parse_messages(value: Any) -> tuple[Message, ...]:
    """Reads the `messages` of a line.

    Raises:
      ValueError: they are no conversation.
    """
    messages = _messages(value, "messages", ("role", "content"))
    _check_turns(messages)
    return messages


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON may escape half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: Any) -> str:
    """A value of a line as JSON, for an error; the begin of it where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = f"{_named(value)} nested too deep"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _skip_rest(file: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def _messages(value: Any, field: str, names: tuple[str, str]) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise ValueError(f"wrong type: {field} is {_named(value)}, must be a list")
    if not value:
        raise ValueError(f"no messages: {field} is empty")
    messages = []
    for index, item in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(item, dict) or any(name not in item for name in names):
            raise ValueError(f"bad message: {place} must be an object with {' and '.join(names)}")
        role, content = (item[name] for name in names)
        if field == "conversations" and isinstance(role, str):
            role = _SHAREGPT_ROLES.get(role, role)
        if role not in get_args(Role):
            known = ", ".join(get_args(Role))
            raise ValueError(f"unknown role: {place} has {shown(role)}, must be one of {known}")
        messages.append(Message(role, _text(content, f"content of {place}")))
    return tuple(messages)


def _check_turns(messages: Sequence[Message]) -> None:
    """Checks that an optional system message comes first, then user and assistant in turn."""
    turns = messages[1:] if messages[0].role == "system" else messages
    if not turns:
        raise ValueError("no user turn: there is only a system message")
    before = "assistant"
    for message in turns:
        if message.role == "system":
            raise ValueError("system message not first: it may only open a conversation")
        if message.role == before:
            if message is turns[0]:
                raise ValueError("assistant first: a conversation must begin with the user")
            raise ValueError(f"turns do not alternate: two messages of the {before} in a row")
        before = message.role
    for index, message in enumerate(messages):
        if not message.content.strip():
            raise ValueError(f"empty message: message {index}, of the {message.role}, is empty")


def _tokenized(fields: Mapping[str, Any], domain: str) -> Tokenized:
    tokens: Any = fields["tokens"]
    mask: Any = fields.get("response_mask")
    if not _list_of(tokens, int) or any(token < 0 for token in tokens):
        raise ValueError("bad tokens: tokens must be a list of token ids, none below 0")
    if not _list_of(mask, bool) or len(mask) != len(tokens):
        raise ValueError(
            f"bad response mask: response_mask must be a list of {len(tokens)} true or false"
        )
    if not any(mask):
        raise ValueError("empty response mask: no token is marked as response")
    messages: tuple[Message, ...] = ()
    if "messages" in fields:
        messages = _messages(fields["messages"], "messages", ("role", "content"))
    tokenizer = _text(fields.get("tokenizer", ""), "tokenizer")
    return Tokenized(EncodedTurn(tokens, mask), messages, tokenizer, domain)


def _list_of(value: Any, kind: type) -> bool:
    # Not isinstance: True is an int.
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a string: {field} is {_named(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not text: {field} holds half of a surrogate pair") from error
    return value


def _named(value: Any) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a truth value", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
