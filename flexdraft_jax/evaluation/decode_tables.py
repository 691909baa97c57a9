"""Rows of whole calls as tables."""

import re
from collections.abc import Callable, Mapping, Sequence

from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.draft_record import Rates
from flexdraft_jax.evaluation.tables import Table


def decode_table(rows: Sequence[DecodeRow], title: str, note: str, columns: Sequence[str]) -> Table:
    """One line per row.

    Args:
        rows: to show.
        title: of the table.
        note: below the table.
        columns: which keys of `_CELLS` to show.
    """
    cells = [tuple(_CELLS[column](row) for column in columns) for row in rows]
    return Table(title, tuple(columns), cells, note)


def speedup_table(rows: Sequence[DecodeRow], title: str, note: str, temperatures: bool) -> Table:
    """One line for each kind of prompts, temperature and batch size; a column for each method.

    Where all prompts are of one kind, the title names it.

    Args:
        rows: to show; "ar" among them.
        title: of the table.
        note: below the table.
        temperatures: whether to show them.
    """
    lines: dict[tuple[str, float, int], dict[str, DecodeRow]] = {}
    for row in rows:
        key = (row.domain, row.temperature, row.batch_size)
        lines.setdefault(key, {})[without_threads(row.method)] = row
    methods = [m for m in dict.fromkeys(m for line in lines.values() for m in line) if m != "ar"]
    one_kind = len({domain for domain, _, _ in lines}) == 1
    if one_kind:
        title = f"{title}, {prompts_name(rows[0].domain)}"

    def cells(key: tuple[str, float, int], line: Mapping[str, DecodeRow]) -> dict[str, str]:
        domain, temperature, batch_size = key
        named = {} if one_kind else {"prompts": prompts_name(domain)}
        named |= {"temperature": f"{temperature:g}"} if temperatures else {}
        plain = f"{line['ar'].tokens_per_second.median:,.0f}"
        named |= {"batch": str(batch_size), "plain, tokens/s": plain}
        # A peer may be there at some batch sizes alone.
        named |= {m: f"{line[m].speedup:.2f}" if m in line else "-" for m in methods}
        if any(row.beside_best for row in rows):
            named["flex / best of the others"] = _beside_best(line["flex"])
        return named

    table = [cells(key, line) for key, line in lines.items()]
    return Table(title, tuple(table[0]), [tuple(line.values()) for line in table], note)


def method_name(row: DecodeRow) -> str:
    """For people."""
    return "plain decoding" if row.method == "ar" else row.method


def prompts_name(domain: str) -> str:
    """For people."""
    return domain.replace("_", " ")


def without_threads(method: str) -> str:
    """ "huggingface, 2 threads" -> "huggingface"."""
    return re.sub(r", \d+ threads?$", "", method)


def _beside_best(row: DecodeRow) -> str:
    return f"{row.beside_best:.2f}" if row.beside_best else "-"


def _equal(row: DecodeRow) -> str:
    """ "13 of 16 (2 at near-ties)": the equal ones, and how many others part at a near-tie."""
    if row.num_equal is None:
        return "-"
    split = f" ({row.num_split_at_ties} at near-ties)" if row.num_split_at_ties else ""
    return f"{row.num_equal} of {row.num_prompts}{split}"


def _first_token(row: DecodeRow) -> str:
    first = row.details.first_token if row.details else None
    return f"{first:.1f}" if first else "-"


def _peak(row: DecodeRow) -> str:
    peak = row.details.peak_bytes if row.details else None
    return "-" if peak is None else f"{peak / 2**20:.0f}"


def _percents(rates: Rates) -> str:
    """ "93 81 60"."""
    return " ".join("-" if rate is None else f"{100 * rate:.0f}" for rate in rates) or "-"


_CELLS: Mapping[str, Callable[[DecodeRow], str]] = {
    "prompts": lambda row: prompts_name(row.domain),
    "method": method_name,
    "batch": lambda row: str(row.batch_size),
    "n": lambda row: str(row.block_size),
    "temperature": lambda row: f"{row.temperature:g}",
    "tau": lambda row: "-" if row.tau is None else f"{row.tau:.2f}",
    "tau (prompt mean)": lambda row: "-" if row.tau_prompts is None else f"{row.tau_prompts:.2f}",
    "tokens/s": lambda row: f"{row.tokens_per_second:.0f}",
    "speed-up": lambda row: "1" if row.method == "ar" else f"{row.speedup:.2f}",
    "beside the best": _beside_best,
    "equal to plain": _equal,
    "accepted, by position": lambda row: _percents(row.details.acceptance if row.details else ()),
    "right, by slot": lambda row: _percents(row.details.accuracy if row.details else ()),
    "first token, ms": _first_token,
    "compilation, s": lambda r: "-" if r.compile_seconds is None else f"{r.compile_seconds:.1f}",
    "peak memory, MiB": _peak,
}
