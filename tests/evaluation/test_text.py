"""Text that comes out token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.evaluation.text import IncrementalText, Origin, PieceReader, token_origins

TOKENIZER = build_byte_tokenizer()
END = 258


def pushed(data: bytes) -> list[str]:
    text = IncrementalText(TOKENIZER)
    return [text.push(byte) for byte in data]


def test_a_character_comes_out_whole_with_its_last_byte() -> None:
    assert pushed("a±漢🙂".encode()) == ["a", "", "±", "", "", "漢", "", "", "", "🙂"]


def test_an_unfinished_character_at_the_end_stays_inside() -> None:
    assert "".join(pushed("zo🙂".encode()[:-1])) == "zo"


def test_bytes_that_are_no_character_do_not_hold_up_the_rest() -> None:
    assert "".join(pushed(b"\xff\xf0\x9f\x99\x82ok")) == "\ufffd🙂ok"


def test_special_tokens_are_not_shown() -> None:
    text = IncrementalText(TOKENIZER)
    assert [text.push(token) for token in (ord("a"), END, ord("b"))] == ["a", "", "b"]


# U+FFFD is what decoders write for bytes that are no character; behind it the rest is awaited.
@given(st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=20))
def test_any_text_comes_out_as_it_is(text: str) -> None:
    assert "".join(pushed(text.encode())) == text


@given(st.binary(max_size=20))
def test_any_bytes_come_out_but_for_an_unfinished_end(data: bytes) -> None:
    whole = data.decode(errors="replace")
    out = "".join(pushed(data))
    assert whole.startswith(out)
    assert set(whole[len(out) :]) <= {"\ufffd"} and len(whole) - len(out) <= 3


@pytest.mark.parametrize(
    ("num_tokens", "acceptance_lengths", "expected"),
    [
        (0, [], ""),
        (1, [], "t"),
        (7, [3, 1, 2], "tddttdt"),
        (6, [3, 1, 2], "tddttd"),  # cut at the budget
        (3, [5], "tdd"),  # cut at a stop token
    ],
)
def test_origins(num_tokens: int, acceptance_lengths: list[int], expected: str) -> None:
    origins = token_origins(num_tokens, acceptance_lengths)
    assert "".join("d" if o is Origin.DRAFT else "t" for o, _ in origins) == expected


def test_steps_are_counted_from_the_prompts_own_token() -> None:
    assert [step for _, step in token_origins(6, [3, 2])] == [0, 1, 1, 1, 2, 2]


def test_reader_gives_only_what_is_new() -> None:
    reader = PieceReader(TOKENIZER)
    tokens = list("Aé!".encode())
    pieces = [*reader.read(tokens[:1], []), *reader.read(tokens[:2], [1])]
    assert [piece.text for piece in pieces] == ["A"]
    (accented, last) = reader.read(tokens, [1, 2])
    assert (accented.text, accented.origin, accented.step) == ("é", Origin.DRAFT, 2)
    assert (last.text, last.origin) == ("!", Origin.TARGET)
