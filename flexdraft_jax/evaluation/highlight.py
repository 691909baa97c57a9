"""Accepted drafts made visible: in colour, underlined, or in marks, as the terminal allows."""

import io
import os
import sys

from rich.console import Console
from rich.text import Text

from flexdraft_jax.evaluation.text import Origin, Piece
from flexdraft_jax.evaluation.timing import Progress

# Two colours in turn, so that each step is seen to end.
_STEP_STYLES = ("green", "cyan")
_TARGET_STYLE = "bold"
_OPEN, _CLOSE = "«", "»"
_ASCII_OPEN, _ASCII_CLOSE = "[", "]"

_FILE_WIDTH = 160

# Control characters of a model's output must not reach the terminal; these symbols stand for them.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console for standard output or error, or for nobody.

    What it can't show becomes a question mark.
    """
    file = open(os.devnull, "w") if quiet else sys.stderr if stderr else sys.stdout
    if isinstance(file, io.TextIOWrapper):
        file.reconfigure(errors="replace")
    # Tables in a file need not fold at the 80 columns that a file is taken to have.
    return Console(file=file, highlight=False, width=None if file.isatty() else _FILE_WIDTH)


def progress_on(console: Console) -> Progress:
    """Writes what it is told to a console, as a line that steps back."""
    return lambda line: console.print(line, style="dim", markup=False)


class Highlighter:
    """Writes pieces to a console as they come.

    Colours on a terminal; underlines where NO_COLOR is set; marks where there is no terminal.
    """

    def __init__(self, console: Console, *, enabled: bool = True) -> None:
        """Looks at what the console can show.

        Args:
            console: to write to.
            enabled: False writes the bare text.
        """
        self._console = console
        self._enabled = enabled
        self._marks = not console.is_terminal or console.color_system is None
        self._open = False
        ascii_only = not _can_show(console, _OPEN + _CLOSE)
        self._pair = (_ASCII_OPEN, _ASCII_CLOSE) if ascii_only else (_OPEN, _CLOSE)

    def legend(self) -> Text:
        """One line that says how to read the text."""
        if self._marks:
            opened, closed = self._pair
            return Text(f"{opened}accepted drafts{closed}, the rest: the target's own tokens")
        if self._console.no_color:
            return Text.assemble(
                ("accepted drafts", "underline"), ", the rest: the target's own tokens"
            )
        return Text.assemble(
            *zip(("accepted ", "drafts"), _STEP_STYLES, strict=True),
            " (the colour changes with each step), ",
            ("the target's own tokens", _TARGET_STYLE),
        )

    def write(self, piece: Piece) -> None:
        """Writes one piece, at once."""
        text = printable(piece.text)
        drafted = piece.origin is Origin.DRAFT
        if not self._enabled:
            self._print(text, "")
        elif self._marks:
            if drafted != self._open:
                text = self._pair[0 if drafted else 1] + text
                self._open = drafted
            self._print(text, "")
        elif self._console.no_color:
            self._print(text, "underline" if drafted else "")
        else:
            self._print(text, _STEP_STYLES[piece.step % 2] if drafted else _TARGET_STYLE)

    def close(self) -> None:
        """Ends the text and its line."""
        if self._open:
            self._print(self._pair[1], "")
            self._open = False
        self._console.print()

    def _print(self, text: str, style: str) -> None:
        if style:
            # The terminal wraps, so that copied text has no breaks of ours.
            self._console.print(Text(text, style=style), end="", soft_wrap=True)
        else:
            # As it is: rich would turn tabs into spaces.
            self._console.file.write(text)
        self._console.file.flush()


def printable(text: str) -> str:
    """`text` with a visible symbol for every control character but newline and tab."""
    return text.translate(_CONTROLS)


def _can_show(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
