import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexdraft_jax.data.chat import EncodedTurn, Message
from flexdraft_jax.data.conversations import (
    MAX_LINE_BYTES,
    Conversation,
    PlainText,
    Tokenized,
    count_lines,
    parse_line,
    read_lines,
    reject,
)

_HELLO = (Message("user", "Hi"), Message("assistant", "Hello"))
_TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def _parse(**fields):
    return parse_line(json.dumps(fields).encode())


def _reject(line):
    with pytest.raises(ValueError) as refused:
        parse_line(line)
    return reject(line, str(refused.value))


def test_every_shape_is_read():
    conversation = Conversation(_HELLO)
    assert _parse(messages=_TURNS) == conversation
    assert _parse(prompt="Hi", response="Hello") == conversation
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert _parse(conversations=sharegpt, id=7) == conversation
    assert _parse(prompt="Hi", domain="code") == Conversation(_HELLO[:1], "code")
    assert _parse(text=" a ") == PlainText(" a ")
    tokens = {"tokens": [1, 2], "response_mask": [False, True]}
    turn = EncodedTurn([1, 2], [False, True])
    assert _parse(**tokens) == Tokenized(turn)
    assert _parse(**tokens, messages=_TURNS, tokenizer="f") == Tokenized(turn, _HELLO, "f")
    system = [{"role": "system", "content": "Be."}]
    assert _parse(messages=system + _TURNS * 2) == Conversation(
        (Message("system", "Be."), *_HELLO, *_HELLO)
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: "),
        (b"\xff{}", "not UTF-8: invalid start byte at byte 0"),
        (b"[" * 100_000, "not JSON that can be read: nested too deep"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not JSON that can be read: an integer has too many"),
        (b"[1]", "not an object: a list in place of one"),
        (b'{"text": "a", "b": {"c": 1}, "text": "b"}', 'a field that is there twice: "text"$'),
        (b'{"text": "a", "b": {"c": 1, "c": 1}}', 'a field that is there twice: "c"$'),
        (b'{"a": 1, "b": 2}', "no known field: .* has a, b"),
        (b"{}", "no known field: .* has none"),
        (b'{"messages": []}', "no messages: messages is empty"),
        (b'{"messages": {}}', "wrong type: messages is an object"),
        (b'{"messages": ["Hi"]}', r"bad message: messages\[0\]"),
        (b'{"messages": [{"role": "user"}]}', "bad message: .* role and content"),
        (b'{"messages": [{"role": "tool", "content": ""}]}', 'unknown role: .*"tool"'),
        (b'{"messages": [{"role": ["u"], "content": ""}]}', "unknown role: "),
        (b'{"messages": [{"role": "user", "content": null}]}', r"not a string: .*\[0\] is null"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "assistant first: "),
        (b'{"messages": [{"role": "system", "content": "a"}]}', "no user turn: "),
        (b'{"prompt": "Hi", "response": " \\n"}', "empty message: message 1, of the assistant"),
        (b'{"prompt": 3, "response": "a"}', "not a string: prompt is a number"),
        (b'{"response": "a"}', "no known field: "),
        (b'{"prompt": "\\ud800", "response": "a"}', "not text: prompt holds half"),
        (b'{"text": "  "}', "empty text: "),
        (b'{"text": "a", "domain": 1}', "not a string: domain"),
        (b'{"tokens": [1, true], "response_mask": [true, true]}', "bad tokens: "),
        (b'{"tokens": [1, -1], "response_mask": [true, true]}', "bad tokens: "),
        (b'{"tokens": [1, 2]}', "bad response mask: .* 2 true or false"),
        (b'{"tokens": [1, 2], "response_mask": [1, 1]}', "bad response mask: "),
        (b'{"tokens": [1], "response_mask": [false]}', "empty response mask: "),
        (b" " * (MAX_LINE_BYTES + 1), "line too long: "),
    ],
)
def test_bad_lines_are_refused_with_a_reason(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse_line(line)
    assert _reject(line).kind == reason.split(":")[0]


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("uu", "turns do not alternate: two messages of the user"),
        ("uaa", "turns do not alternate: two messages of the assistant"),
        ("usa", "system message not first"),
        ("ssua", "system message not first"),
        ("sau", "assistant first"),
    ],
)
def test_messages_must_take_turns(roles, reason):
    names = {"s": "system", "u": "user", "a": "assistant"}
    with pytest.raises(ValueError, match=reason):
        _parse(messages=[{"role": names[role], "content": "x"} for role in roles])


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: json.dumps({t: t}).encode()))
@settings(max_examples=200, deadline=None)
def test_no_line_raises_anything_but_a_reason(line):
    _reject(line)


def test_a_file_is_read_around_its_bad_lines(tmp_path):
    good = json.dumps({"prompt": "Hi", "response": "Hello"}).encode()
    long = json.dumps({"text": "é" * MAX_LINE_BYTES}, ensure_ascii=False).encode()
    marked = b"\xef\xbb\xbf" + good
    lines = [marked, b"", b"  \r", b'{"prompt": "\xff"}', long, b"{", marked]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    lines = dict(read_lines(path))
    assert list(lines) == [1, 4, 5, 6, 7]
    assert count_lines(path) == 5
    assert parse_line(lines[1]) == parse_line(lines[7]) == Conversation(_HELLO)
    found = {number: _reject(lines[number]) for number in (4, 5, 6)}
    assert [rejected.kind for rejected in found.values()] == [
        "not UTF-8",
        "line too long",
        "not JSON",
    ]
    assert found[4].start == '{"prompt": "\ufffd"}'
    assert found[5].start == long.decode()[:200]
    assert found[6].start == "{"


def test_a_line_that_is_a_little_too_long_is_one_line(tmp_path):
    """Even where a byte order mark comes before it."""
    good = json.dumps({"prompt": "Hi", "response": "Hello"}).encode()
    path = tmp_path / "a.jsonl"
    for mark in (b"", b"\xef\xbb\xbf"):
        for size in range(MAX_LINE_BYTES - 1, MAX_LINE_BYTES + 5):
            path.write_bytes(mark + b"x" * size + b"\n" + good)
            lines = dict(read_lines(path))
            assert list(lines) == [1, 2] and lines[2] == good
            assert ("too long" in _reject(lines[1]).kind) == (size >= MAX_LINE_BYTES)
