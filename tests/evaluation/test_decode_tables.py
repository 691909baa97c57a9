"""Rows of whole calls as tables."""

from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.decode_tables import speedup_table
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.timing import Spread


def row(domain: str, size: int, method: str, speed: float, **fields) -> DecodeRow:
    spreads = [Spread(median, 0.9 * median, 1.1 * median) for median in (1100 * speed, speed)]
    return DecodeRow(domain, size, method, 8, *spreads, None, None, 2, **fields)


def of_batch(domain: str, size: int, *, threads: str, **fields) -> list[DecodeRow]:
    return [
        row(domain, size, "ar", 1.0, **fields),
        row(domain, size, "parallel", 1.27, **fields),
        row(domain, size, "flex", 2.0, beside_best=Spread(0.99, 0.96, 1.01), **fields),
        row(domain, size, f"huggingface, {threads}", 0.5, **fields),
    ]


def table(rows: list[DecodeRow], temperatures: bool = False) -> Table:
    return speedup_table(rows, "Speed-ups: tiny", "", temperatures)


def test_methods_are_columns() -> None:
    peer = row("word_problems", 1, "huggingface, prompt lookup, 1 thread", 0.25)
    rows = [*of_batch("word_problems", 1, threads="1 thread"), peer]
    rows += of_batch("word_problems", 8, threads="2 threads")
    rows += of_batch("code", 1, threads="1 thread")
    lines = table(rows).to_markdown().splitlines()
    assert lines[0] == "**Speed-ups: tiny**"
    assert lines[2] == (
        "| prompts | batch | plain, tokens/s | parallel | flex | huggingface "
        "| huggingface, prompt lookup | flex / best of the others |"
    )
    cells = "1,100 | 1.27 (1.14-1.40) | 2.00 (1.80-2.20) | 0.50 (0.45-0.55)"
    assert lines[4:] == [
        f"| word problems | 1 | {cells} | 0.25 (0.23-0.28) | 0.99 (0.96-1.01) |",
        f"| word problems | 8 | {cells} | - | 0.99 (0.96-1.01) |",
        f"| code | 1 | {cells} | - | 0.99 (0.96-1.01) |",
    ]


def test_only_what_differs_is_a_column() -> None:
    rows = [row("random tokens", size, method, 1.0) for size in (1, 2) for method in ("ar", "peer")]
    found = table(rows)
    assert found.columns == ("batch", "plain, tokens/s", "peer")
    assert found.title == "Speed-ups: tiny, random tokens"
    drawn = [row("code", 1, "ar", 1.0, temperature=t) for t in (0.0, 1.0)]
    assert table(drawn, temperatures=True).rows == [("0", "1", "1,100"), ("1", "1", "1,100")]
