"""Rows of whole calls as pictures."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from flexdraft_jax.evaluation.decode_speed import DecodeRow, temperature_name
from flexdraft_jax.evaluation.decode_tables import method_name, prompts_name, without_threads


def plot_throughput(rows: Sequence[DecodeRow], path: str) -> None:
    """Draws tokens per second by batch size, a line for each method, side by side per domain.

    Args:
        rows: to draw, with their lowest and highest repeats.
        path: of the picture; its ending names the format.
    """
    panels = _panels(rows)
    # A peer takes the threads that suit each batch size; it is one line all the same.
    names = list(dict.fromkeys(without_threads(row.method) for row in rows))
    figure = Figure(figsize=(1 + 5 * len(panels), 4.6), layout="constrained")
    for place, (title, of_domain) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place, title=title)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="tokens/s")
        sizes = sorted({row.batch_size for row in of_domain})
        for name in names:
            line = [row for row in of_domain if without_threads(row.method) == name]
            speed = [row.tokens_per_second for row in line]
            spread = [[s.median - s.low for s in speed], [s.high - s.median for s in speed]]
            axes.errorbar(
                [row.batch_size for row in line],
                [s.median for s in speed],
                spread,
                marker="o",
                capsize=3,
                label=name if place == 1 else None,
            )
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(names))
    figure.savefig(path, dpi=120)


def plot_acceptance(rows: Sequence[DecodeRow], path: str) -> None:
    """Draws acceptance by position, a line for each kind of prompts.

    It hardly depends on schedule and batch size; the first drafting method of each kind is drawn.

    Args:
        rows: with details.
        path: of the picture; its ending names the format.

    Raises:
        ValueError: no row has drafts.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel="position of the draft", ylabel="accepted, % of steps")
    for title, of_domain in _panels(rows).items():
        drafting = (row.details.acceptance for row in of_domain if row.details)
        rates = next((rates for rates in drafting if any(r is not None for r in rates)), ())
        known = [(j, 100 * rate) for j, rate in enumerate(rates, 1) if rate is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=title)
            axes.set_xticks(range(1, len(rates) + 1))
    if not axes.lines:
        raise ValueError("acceptance by position: no row has drafts")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_tau(rows: Sequence[DecodeRow], path: str) -> None:
    """Draws tau by kind of prompts, a bar for each method that drafts, at its smallest batch size.

    Args:
        rows: to draw.
        path: of the picture; its ending names the format.

    Raises:
        ValueError: no row has drafts.
    """
    drafting = [row for row in rows if row.tau is not None and row.method != "ar"]
    if not drafting:
        raise ValueError("tau by domain: no row has drafts")
    panels = _panels(drafting)
    names = list(dict.fromkeys(method_name(row) for row in drafting))
    figure = Figure(figsize=(2 + 1.5 * len(panels), 4.6), layout="constrained")
    axes = figure.add_subplot(ylabel="tau, tokens per step")
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        left = place * width - 0.4 + width / 2
        bars: dict[float, float] = {}
        for x, of_domain in enumerate(panels.values()):
            of_method = [row for row in of_domain if method_name(row) == name]
            if of_method:
                smallest = min(of_method, key=lambda row: row.batch_size)
                assert smallest.tau is not None  # Of `drafting` alone.
                bars[x + left] = smallest.tau
        axes.bar(list(bars), list(bars.values()), width, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(panels)), list(panels))
    axes.legend()
    figure.savefig(path, dpi=120)


def _panels(rows: Sequence[DecodeRow]) -> dict[str, list[DecodeRow]]:
    """Rows by kind of prompts and temperature, each with its title."""
    panels: dict[str, list[DecodeRow]] = {}
    for row in rows:
        title = prompts_name(row.domain) + temperature_name(row.temperature)
        panels.setdefault(title, []).append(row)
    return panels
