"""One table, for the terminal and for Markdown."""

import dataclasses
from collections.abc import Sequence

import rich.box
import rich.table
from rich.console import Group, RenderableType
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as they are printed.

    Attributes:
        title: one line above.
        columns: headings; the first column is left-aligned, the others right.
        rows: as many cells each as there are columns.
        note: one line below; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def to_rich(self) -> Group:
        """For a `rich` console. Title and note may be wider than the table."""
        table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
        for i, column in enumerate(self.columns):
            # Where there is no room, rather in pieces than cut off.
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in self.rows:
            # Cells are text, and not markup, whatever they hold.
            table.add_row(*map(Text, row))
        parts: list[RenderableType] = [Text(self.title, style="bold"), table]
        if self.note:
            parts.append(Text(self.note, style="dim"))
        return Group(*parts)

    def to_markdown(self) -> str:
        """For a README; ends with a newline."""
        lines = [f"**{self.title}**", "", _line(self.columns)]
        lines.append(_line(["---"] + ["---:"] * (len(self.columns) - 1)))
        lines += [_line(row) for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines) + "\n"


def percent(share: float | None) -> str:
    """0.874 -> "87 %"; None -> "-"."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
