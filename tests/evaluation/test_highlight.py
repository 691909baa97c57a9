"""Accepted drafts can be told from the rest on every kind of terminal."""

import io
import re

import pytest
from rich.console import Console

from flexdraft_jax.evaluation.highlight import Highlighter, make_console, printable
from flexdraft_jax.evaluation.text import Origin, Piece

PIECES = [
    Piece("a", Origin.TARGET, 0),
    Piece("b", Origin.DRAFT, 1),
    Piece("c", Origin.DRAFT, 1),
    Piece("d", Origin.TARGET, 1),
    Piece("e", Origin.DRAFT, 2),
]
COLOUR = re.compile(r"\x1b\[3\dm")


def written(console: Console, *, enabled: bool = True) -> str:
    highlighter = Highlighter(console, enabled=enabled)
    for piece in PIECES:
        highlighter.write(piece)
    highlighter.close()
    return console.file.getvalue()


def terminal(**options) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, **options)


def test_without_a_terminal_marks_stand_around_drafts() -> None:
    assert written(Console(file=io.StringIO())) == "a«bc»d«e»\n"


def test_marks_are_ascii_where_nothing_else_can_be_shown() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    highlighter = Highlighter(Console(file=file))
    for piece in PIECES:
        highlighter.write(piece)
    highlighter.close()
    assert file.buffer.getvalue() == b"a[bc]d[e]\n"


def test_colour_changes_with_each_step() -> None:
    text = written(terminal(color_system="standard", no_color=False))
    colours = [match[0] for match in COLOUR.finditer(text)]
    assert len(colours) == 3 and colours[0] == colours[1] != colours[2]


def test_no_color_underlines() -> None:
    text = written(terminal(color_system="standard", no_color=True))
    assert not COLOUR.search(text)
    assert text.count("\x1b[4m") == 3


def test_no_color_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(written(terminal(color_system="standard")))


@pytest.mark.parametrize("options", [{"color_system": "standard"}, {"color_system": None}])
def test_disabled_writes_the_bare_text(options) -> None:
    assert written(terminal(**options), enabled=False) == "abcde\n"


def test_unstyled_text_keeps_its_tabs() -> None:
    console = Console(file=io.StringIO())
    Highlighter(console).write(Piece("\tif a:\n\t\t", Origin.TARGET, 0))
    assert console.file.getvalue() == "\tif a:\n\t\t"


@pytest.mark.parametrize("no_color", [False, True])
def test_legend_is_shown_as_the_text_is(no_color: bool) -> None:
    console = terminal(color_system="standard", no_color=no_color)
    console.print(Highlighter(console).legend())
    assert bool(COLOUR.search(console.file.getvalue())) is not no_color


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x00\x7f\n\tc") == "a␛[2Jb␀␡\n\tc"


def test_console_survives_what_it_can_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", file)
    console = make_console()
    console.print("漢")
    file.flush()
    assert file.buffer.getvalue() == b"?\n"
