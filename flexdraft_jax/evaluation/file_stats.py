"""What is noted of every answer of a file, and what all of them say together."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from flexdraft_jax.data.conversations import whole_lines
from flexdraft_jax.decoding.rounds import Answer
from flexdraft_jax.evaluation.tables import Table


def stats_record(line: int, num_prompt_tokens: int, answer: Answer) -> dict[str, Any]:
    """What is noted of an answer, as JSON.

    Args:
        line: its number.
        num_prompt_tokens: of its request.
        answer: to it.
    """
    steps = answer.acceptance_lengths
    verified, accepted = Counter[int](), Counter[int]()
    for length, verify_length in zip(steps, answer.verify_lengths, strict=True):
        verified.update(range(verify_length))
        accepted.update(range(length - 1))
    by_fill: dict[int, list[int]] = {}
    for fill, length in zip(answer.batch_fills, steps, strict=True):
        count = by_fill.setdefault(fill, [0, 0])
        count[0] += 1
        count[1] += length
    return {
        "line": line,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": num_prompt_tokens,
        "new_tokens": len(answer.tokens),
        "steps": len(steps),
        "tau": round(sum(steps) / len(steps), 4) if steps else None,
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "seconds": round(answer.seconds, 4),
        # Of the first draft, the second, ...: how often it was verified, and how often accepted.
        "verified": [verified[i] for i in range(len(verified))],
        "accepted": [accepted[i] for i in range(len(verified))],
        # Rows that decoded together: steps of this row, and tokens that they gave.
        "by_fill": {str(fill): count for fill, count in sorted(by_fill.items())},
    }


def stats_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer that was written says of itself, where nothing else is known of it."""
    if "error" in record:
        return {"line": record["line"], "finish_reason": "error"}
    return {
        "line": record["line"],
        "finish_reason": record["finish_reason"],
        "new_tokens": len(record["token_ids"]),
    }


@dataclasses.dataclass
class FileSummary:
    """All answers of a file, counted.

    Attributes:
        endings: lines by how they ended: "stop", "length" or "error".
        num_tokens: new ones.
        verified: drafts that were verified, by position from 0.
        accepted: drafts that were accepted.
        steps: by how many rows decoded together.
        emitted: tokens that those steps gave.
    """

    endings: Counter[str] = dataclasses.field(default_factory=Counter)
    num_tokens: int = 0
    verified: Counter[int] = dataclasses.field(default_factory=Counter)
    accepted: Counter[int] = dataclasses.field(default_factory=Counter)
    steps: Counter[int] = dataclasses.field(default_factory=Counter)
    emitted: Counter[int] = dataclasses.field(default_factory=Counter)

    @property
    def num_lines(self) -> int:
        """Lines with an answer or an error."""
        return self.endings.total()

    @property
    def tau(self) -> float:
        """Mean acceptance length over all steps; nan without any."""
        steps = self.steps.total()
        return self.emitted.total() / steps if steps else float("nan")

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts one `stats_record`, or what there is of it."""
        self.endings[record["finish_reason"]] += 1
        self.num_tokens += record.get("new_tokens", 0)
        for position, (verified, accepted) in enumerate(
            zip(record.get("verified", ()), record.get("accepted", ()), strict=True)
        ):
            self.verified[position] += verified
            self.accepted[position] += accepted
        for fill, (steps, emitted) in record.get("by_fill", {}).items():
            self.steps[int(fill)] += steps
            self.emitted[int(fill)] += emitted

    def to_table(self, title: str, note: str) -> Table:
        """For people."""
        cells = [
            ("lines", f"{self.num_lines:,}"),
            *((f"ended by {ending}", f"{n:,}") for ending, n in sorted(self.endings.items())),
            ("new tokens", f"{self.num_tokens:,}"),
            ("tau", f"{self.tau:.2f}"),
        ]
        return Table(title, ("what", "count"), cells, note)


def summarise(path: str | os.PathLike[str]) -> FileSummary:
    """Counts the records of a file, one a line."""
    summary = FileSummary()
    for line in whole_lines(path):
        summary.add(json.loads(line))
    return summary


def plot_summary(summary: FileSummary, path: str | os.PathLike[str]) -> None:
    """Draws how often drafts are accepted by position, and tau by how full the batch was.

    Args:
        summary: of a file; what it has none of stays empty.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_position, by_fill = figure.subplots(1, 2)
    positions = sorted(summary.verified)
    shares = [summary.accepted[i] / summary.verified[i] for i in positions]
    by_position.bar([i + 1 for i in positions], shares)
    by_position.set(xlabel="position of the draft", ylabel="accepted of those verified")
    by_position.set_ylim(0, 1)
    fills = sorted(summary.steps)
    taus = [summary.emitted[fill] / summary.steps[fill] for fill in fills]
    by_fill.plot(fills, taus, marker="o")
    by_fill.set(xlabel="rows decoding together", ylabel="tau (tokens per step)")
    by_fill.set_ylim(bottom=0)
    for axes in (by_position, by_fill):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
