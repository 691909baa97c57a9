"""The same cells on a terminal and in Markdown."""

import io

import pytest
from rich.console import Console

from flexdraft_jax.evaluation.tables import Table, percent

TABLE = Table(
    "Speed",
    ("schedule", "tokens/s"),
    [("ar", "10"), ("a|b", "20"), ("[red]", "30")],
    note="By hand.",
)


def test_markdown() -> None:
    assert TABLE.to_markdown() == (
        "**Speed**\n\n| schedule | tokens/s |\n| --- | ---: |\n| ar | 10 |\n"
        "| a\\|b | 20 |\n| [red] | 30 |\n\n"
        "By hand.\n"
    )


def test_rich_shows_every_cell() -> None:
    console = Console(file=io.StringIO())
    console.print(TABLE.to_rich())
    for text in ("Speed", "schedule", "a|b", "20", "[red]", "By hand."):
        assert text in console.file.getvalue()


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0.874, "87 %"), (1.0, "100 %")])
def test_percent(share: float | None, text: str) -> None:
    assert percent(share) == text
