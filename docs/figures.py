"""Draws the figures of how_it_works.md: `python docs/figures.py`.

The attention mask is that of the code (`flexdraft_jax/models/masks.py`), and a test compares the
files beside this script with what it draws.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import jax.numpy as jnp
import numpy as np

from flexdraft_jax.models import masks

FIGURES = Path(__file__).with_name("figures")

_PREFIX, _CANDIDATE, _MASK = "#9aa5b1", "#7ba7d7", "#86c579"
_HEAD, _CHOICE = "#f0c674", "#ffffff"
_EMPTY, _LINE, _INK = "#f4f5f7", "#ffffff", "#1f2933"
_CELL = 18  # pixels

_Part = tuple[float, list[tuple[str, str]]]


def step_mask(length: int, num_slots: int, num_drafts: int, block_size: int) -> np.ndarray:
    """Who sees whom in a draft layer of one parallel step of one row, without a window.

    Args:
        length: tokens in the cache.
        num_slots: S of the cache.
        num_drafts: v; there are C = v + 1 candidates and as many mask groups.
        block_size: n.

    Returns:
        [C + C * n, S + C + C * n] bool: candidates and mask groups against the cache, the
        candidates and the groups.
    """
    count = num_drafts + 1
    row_length = jnp.array([length])

    def prefix(positions: np.ndarray) -> np.ndarray:
        span = masks.prefix_span(row_length, jnp.asarray(positions)[None], None)
        seen = np.asarray(span.mask(num_slots))[0]
        return np.broadcast_to(seen, (len(positions), num_slots))

    offsets = 1 + np.arange(count)[:, None] + np.arange(block_size)
    candidates = [
        prefix(length + np.arange(count)),
        masks.block_mask(count, None),
        np.zeros((count, count * block_size), bool),
    ]
    own = masks.own_group_mask(block_size, None)
    groups = [
        prefix(length + offsets.ravel()),
        masks.group_block_mask(count, block_size, count, None),
        np.kron(np.eye(count, dtype=bool), own),
    ]
    return np.concatenate([np.concatenate(part, axis=1) for part in (candidates, groups)])


def draw_attention_mask(
    length: int = 5, num_slots: int = 6, num_drafts: int = 3, n: int = 4
) -> str:
    """The mask of one parallel step as SVG."""
    mask = step_mask(length, num_slots, num_drafts, n)
    count = num_drafts + 1
    left, top, gap = 150, 74, 6
    columns = [_PREFIX] * num_slots + [_CANDIDATE] * count + [_MASK] * (count * n)
    # Blocks of rows and columns stand a little apart.
    row_starts = [0, *(count + n * k for k in range(count))]
    column_starts = [0, num_slots, *(num_slots + count + n * k for k in range(count))]
    y_of = [top + _CELL * i + gap * sum(i >= s for s in row_starts) for i in range(len(mask))]
    x_of = [
        left + _CELL * j + gap * sum(j >= s for s in column_starts) for j in range(len(columns))
    ]
    shapes = [
        _rect(x, y, _CELL - 1, _CELL - 1, colour if mask[i, j] else _EMPTY)
        for i, y in enumerate(y_of)
        for j, (x, colour) in enumerate(zip(x_of, columns, strict=True))
    ]

    def middle(places: Sequence[int], first: int, size: int) -> float:
        return (places[first] + places[first + size - 1] + _CELL) / 2

    def labels() -> Iterator[str]:
        yield _text(middle(x_of, 0, num_slots), top - 26, "cache", anchor="middle")
        note = f"{length} tokens, {num_slots - length} free"
        yield _text(middle(x_of, 0, num_slots), top - 10, note, anchor="middle", size=10)
        yield _text(middle(x_of, num_slots, count), top - 26, "candidates", anchor="middle")
        yield _text(middle(x_of, num_slots, count), top - 10, f"0..{num_drafts}", anchor="middle")
        yield _text(left - 12, middle(y_of, 0, count) + 4, f"candidates 0..{num_drafts}", "end")
        for k in range(count):
            name = f"mask group {k}"
            at = middle(x_of, num_slots + count + n * k, n)
            yield _text(at, top - 10, name, anchor="middle", size=10)
            yield _text(left - 12, middle(y_of, count + n * k, n) + 4, name, "end")
        yield _text(left - 12, top - 10, "sees", "end", size=10)
        foot = y_of[-1] + _CELL + 26
        yield _text(left, foot, "Coloured: the query in this row sees the key in this column.")
        note = f"Group k drafts for the case that k of the {num_drafts} drafts are accepted."
        yield _text(left, foot + 18, note)

    return _svg(x_of[-1] + _CELL + 20, y_of[-1] + _CELL + 60, [*shapes, *labels()])


def draw_schedules(num_layers: int = 6, num_draft_layers: int = 2) -> str:
    """What the three kinds of steps read, one after the other, as SVG."""
    shallow, deep, unit = num_layers - num_draft_layers, num_draft_layers, 52
    # Width of a part, and colour and label of what passes through it, from top to bottom.
    verify: list[_Part] = [
        (shallow, [(_CANDIDATE, "layers 1..L-D")]),
        (deep, [(_CANDIDATE, "last D layers")]),
        (1, [(_HEAD, "head")]),
    ]
    accept: _Part = (0.9, [(_CHOICE, "accept")])
    draft: list[_Part] = [(deep, [(_MASK, "last D layers")]), (1, [(_HEAD, "head")])]
    both: _Part = (deep, [(_CANDIDATE, "last D layers"), (_MASK, "groups 0..v")])
    together = [verify[0], both, verify[2]]
    lanes = [
        ("plain", "1 token", verify),
        ("sequential", "tau tokens", [*verify, accept, *draft]),
        ("parallel", "tau tokens", [*together, accept, draft[-1]]),
    ]
    left, top, height, pitch = 110, 24, 44, 74
    shapes = []
    for lane, (name, gain, parts) in enumerate(lanes):
        y, x = top + pitch * lane, float(left)
        shapes.append(_text(left - 12, y + height / 2 + 4, name, "end"))
        for width, through in parts:
            each = height / len(through)
            for index, (colour, label) in enumerate(through):
                top_edge = y + index * each
                shapes.append(_rect(x, top_edge, width * unit, each, colour, edge=True))
                shapes.append(_text(x + width * unit / 2, top_edge + each / 2 + 4, label, "middle"))
            x += width * unit
        shapes.append(_text(x + 10, y + height / 2 + 4, gain))
    y = top + pitch * len(lanes) + 6
    legend = [(_CANDIDATE, "candidates (plain: one token)"), (_MASK, "mask tokens")]
    x = left
    for colour, label in legend:
        shapes += [_rect(x, y - 12, 14, 14, colour, edge=True), _text(x + 20, y, label)]
        x += 46 + 7 * len(label)
    note = f"Widths: weights that are read, as many for a layer as for the head; L = {num_layers}, "
    shapes.append(_text(left, y + 24, f"{note}D = {deep}."))
    shapes.append(_text(left, y + 42, "Where a pass is bound by memory, that is time."))
    width = left + unit * sum(part[0] for part in lanes[1][2]) + 100
    return _svg(int(width), int(y + 60), shapes)


def figures() -> dict[str, str]:
    """All figures by file name."""
    return {"attention_mask.svg": draw_attention_mask(), "schedules.svg": draw_schedules()}


def main() -> None:
    """Writes them."""
    FIGURES.mkdir(exist_ok=True)
    for name, svg in figures().items():
        (FIGURES / name).write_text(svg)


def _rect(x: float, y: float, width: float, height: float, fill: str, edge: bool = False) -> str:
    line = f' stroke="{_INK}"' if edge else ""
    size = f'width="{width:g}" height="{height:g}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} fill="{fill}"{line}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{_INK}">{escape(text)}</text>'


def _svg(width: int, height: int, shapes: Sequence[str]) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif">\n'
        f"{_rect(0, 0, width, height, _LINE)}\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
