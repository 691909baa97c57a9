"""Two reports of the benchmark side by side: what became faster, slower or unequal.

A machine is never twice the same, so a change of a time counts only where the repeats of both
reports don't overlap, and would not if one of the runs had been a tenth slower throughout. What
tokens come out hardly depends on the machine, and less of a change counts there.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.evaluation.decode_speed import temperature_name
from flexdraft_jax.evaluation.decode_tables import prompts_name, without_threads
from flexdraft_jax.evaluation.tables import Table, percent
from flexdraft_jax.evaluation.timing import Spread

# Greedy tau repeats exactly but for near-ties of the target, which a new version may break anew.
_TAU_NOISE = 0.01
# How far whole runs drift apart on an unchanged machine.
_DRIFT = 0.1
# With fewer, repeats are often apart by chance.
_FEWEST_REPEATS = 4
# What makes numbers of two reports incomparable when it differs.
_SAME_ENVIRONMENT = ("platform", "device", "processor", "processors", "mesh", "dtype")
_SAME_SETTINGS = ("confidence_threshold", "num_prompts", "max_new_tokens", "forced_acceptance")

# What a row measures: domain, method, batch size, block size, temperature.
_Key = tuple[str, str, int, int, float]


@dataclasses.dataclass(frozen=True)
class Change:
    """One row of whole calls, or the cost of one step, in both reports.

    Attributes:
        domain: of the prompts; "" for a step.
        method: a schedule, or the name of another implementation.
        batch_size: B.
        block_size: n.
        temperature: 0 is greedy.
        before: tokens/s; milliseconds of a step.
        after: likewise.
        tau: before and after; None where neither has one.
        equal: share of the rows that are equal to plain decoding, before and after; None of a step,
            and where tokens mean nothing.
        first_token: milliseconds to the first token, before and after; None where one report has
            none.
    """

    domain: str
    method: str
    batch_size: int
    block_size: int
    temperature: float
    before: Spread
    after: Spread
    tau: tuple[float, float] | None = None
    equal: tuple[float, float] | None = None
    first_token: tuple[Spread, Spread] | None = None

    @property
    def key(self) -> _Key:
        """What it measures."""
        return self.domain, self.method, self.batch_size, self.block_size, self.temperature

    @property
    def is_step(self) -> bool:
        """Whether it is the cost of a step, where less is better."""
        return not self.domain

    @property
    def slower(self) -> bool:
        """Whether every repeat after is slower than every one before, beyond drift."""
        if self.is_step:
            return _longer(self.before, self.after)
        return _longer(self.after, self.before)  # Of tokens/s fewer are slower.

    @property
    def faster(self) -> bool:
        """The same, faster."""
        return dataclasses.replace(self, before=self.after, after=self.before).slower

    @property
    def later(self) -> bool:
        """Whether the first token comes later, by the same rule."""
        return self.first_token is not None and _longer(*self.first_token)

    @property
    def sooner(self) -> bool:
        """The same, sooner."""
        return self.first_token is not None and _longer(*reversed(self.first_token))

    @property
    def lower_tau(self) -> bool:
        """Whether fewer tokens come of a step. Flex chooses its steps for speed, and is exempt."""
        if self.tau is None or self.method == "flex":
            return False
        return self.tau[1] < self.tau[0] * (1 - _TAU_NOISE)

    @property
    def fewer_equal(self) -> bool:
        """Whether fewer rows are equal to plain decoding."""
        return self.equal is not None and self.equal[1] < self.equal[0]

    @property
    def is_regression(self) -> bool:
        """Whether anything of ours became worse; another implementation may."""
        worse = self.slower or self.later or self.lower_tau or self.fewer_equal
        return worse and self.method in SCHEDULES

    @property
    def verdict(self) -> str:
        """What changed, for people; "" for nothing."""
        said = {
            "slower": self.slower,
            "faster": self.faster,
            "first token later": self.later,
            "first token sooner": self.sooner,
            "lower tau": self.lower_tau,
            "fewer equal": self.fewer_equal,
        }
        text = ", ".join(word for word, true in said.items() if true)
        return f"REGRESSION: {text}" if self.is_regression else text

    def __str__(self) -> str:
        what = "step" if self.is_step else prompts_name(self.domain)
        where = f"{what}, {self.method}, batch {self.batch_size}, n = {self.block_size}"
        where += temperature_name(self.temperature)
        first = ""
        if self.first_token is not None and self.later:
            first = f", first token {_percent_change(*self.first_token)}"
        return f"{where}: {self.verdict} ({_percent_change(self.before, self.after)}{first})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two reports of the same model and machine.

    Attributes:
        model: of both.
        changes: rows that are in both.
        unmatched: rows that are in one report alone: "before" or "after", and what they measure.
        environment: what differs in it, such as versions: its name, before and after.
    """

    model: str
    changes: list[Change]
    unmatched: list[tuple[str, _Key]]
    environment: dict[str, tuple[Any, Any]]

    @property
    def regressions(self) -> list[Change]:
        """What became worse."""
        return [change for change in self.changes if change.is_regression]

    def tables(self) -> list[Table]:
        """Whole calls and step costs, as far as both reports have them, and what one has alone."""
        calls = [change for change in self.changes if not change.is_step]
        steps = [change for change in self.changes if change.is_step]
        tables = []
        if calls:
            cells = [_call_cells(c) for c in calls]
            tables.append(self._table("Whole calls", _CALL_COLUMNS, cells))
        if steps:
            cells = [_step_cells(c) for c in steps]
            tables.append(self._table("Cost of one step", _STEP_COLUMNS, cells))
        if self.unmatched:
            rows = [(report, *_names(key)) for report, key in self.unmatched]
            tables.append(Table(f"In one report alone: {self.model}", _UNMATCHED_COLUMNS, rows))
        return tables

    def _table(
        self, title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]
    ) -> Table:
        notes = [
            "Medians (lowest-highest). A change of a time is named where the repeats are "
            f"more than {percent(_DRIFT)} apart: whole runs drift."
        ]
        notes += [f"{name}: {a} before, {b} after." for name, (a, b) in self.environment.items()]
        return Table(f"{title}: {self.model}", columns, rows, " ".join(notes))


def compare_reports(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compares what `read_report` gave.

    Args:
        before: the older report.
        after: the newer one.

    Raises:
        ValueError: they are of different models, machines or settings, no row is in both, or one
            alone has a row's tau or equality.
    """
    _check_same("model", before["model"], after["model"])
    for part, names in (("environment", _SAME_ENVIRONMENT), ("settings", _SAME_SETTINGS)):
        for name in names:
            # An older report may not know of a field; of a mesh a report speaks where there is one.
            if name == "mesh" or (name in before[part] and name in after[part]):
                _check_same(f"{part}.{name}", before[part].get(name), after[part].get(name))
    digests = [dict(report.get("prompt_digests", {})) for report in (before, after)]
    for domain in digests[0].keys() & digests[1].keys():
        _check_same(f"prompt_digests.{domain}", digests[0][domain], digests[1][domain])
    forced = before["settings"].get("forced_acceptance") is not None
    old, new = _rows(before), _rows(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise ValueError("the reports don't match: no method, batch size and domain is in both")
    environments = before["environment"], after["environment"]
    pairs = {
        name: (environments[0].get(name), environments[1].get(name))
        for name in dict.fromkeys([*environments[0], *environments[1]])
        if name != "load_average"
    }
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return Comparison(
        before["model"],
        [_change(key, old[key], new[key], forced) for key in shared],
        [
            (report, key)
            for report, rows, others in (("before", old, new), ("after", new, old))
            for key in rows
            if key not in others
        ],
        different,
    )


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `infer/benchmark.py --json` wrote.

    Raises:
        ValueError: the file is no such report, or has too few repeats.
        OSError: there is no file that can be read.
    """
    try:
        report = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
        repeats = int(report["settings"]["repeats"])
        # Whatever the comparison looks up, it finds.
        if not isinstance(report["model"], str) or not isinstance(report["environment"], dict):
            raise TypeError("model and environment")
        dict(report.get("prompt_digests", {}))
        _rows(report)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)}: must be a file that infer/benchmark.py --json wrote ({error!r})"
        ) from error
    if repeats < _FEWEST_REPEATS:
        raise ValueError(
            f"{os.fspath(path)}: was measured with repeats={repeats}, which is too few; must be "
            f"at least {_FEWEST_REPEATS}"
        )
    return report


def _rows(report: Mapping[str, Any]) -> dict[_Key, dict[str, Any]]:
    """Rows of whole calls and of step costs, each with the `Spread` that it is of as "measured"."""
    rows = {}
    for row in report["decoding"]:
        method = without_threads(row["method"])
        temperature = float(row.get("temperature", 0))
        key = (str(row["domain"]), method, row["batch_size"], row["block_size"], temperature)
        measured = _spread(row["tokens_per_second"])
        share = None
        if row["num_equal"] is not None:
            # A row that parts at a near-tie is as good as equal.
            equal = row["num_equal"] + (row.get("num_split_at_ties") or 0)
            share = equal / row["num_prompts"]
            if not 0 <= share <= 1:
                raise ValueError(f"num_equal={row['num_equal']} of {row['num_prompts']}")
        tau = None if row["tau"] is None else float(row["tau"])
        if tau is not None and not 0 <= tau < math.inf:
            raise ValueError(f"tau={tau}")
        details = row.get("details")
        first = details and details["first_token"]
        first = None if first is None else _spread(first)
        if key in rows:
            raise ValueError(f"twice in it: {key}")
        rows[key] = {"measured": measured, "tau": tau, "equal": share, "first_token": first}
    for row in report["steps"]:
        key = ("", str(row["schedule"]), row["batch_size"], row["block_size"], 0.0)
        if key in rows:
            raise ValueError(f"twice in it: {key}")
        rows[key] = {"measured": _spread(row["milliseconds"])}
    return rows


def _spread(fields: Mapping[str, Any]) -> Spread:
    spread = Spread(*(float(fields[name]) for name in ("median", "low", "high")))
    if not 0 < spread.low <= spread.median <= spread.high < math.inf:
        raise ValueError(f"no spread: {spread}")
    return spread


def _change(key: _Key, old: Mapping[str, Any], new: Mapping[str, Any], forced: bool) -> Change:
    def pair(name: str) -> tuple[Any, Any] | None:
        both = old.get(name), new.get(name)
        if name != "first_token" and (both[0] is None) != (both[1] is None):
            raise ValueError(f"the reports don't match: {key} has {name} in one of them alone")
        return None if None in both else both

    return Change(
        *key,
        old["measured"],
        new["measured"],
        tau=pair("tau"),
        equal=None if forced else pair("equal"),  # Forced tokens are equal to nothing.
        first_token=pair("first_token"),
    )


def _longer(before: Spread, after: Spread) -> bool:
    """Whether every repeat after is above every one before, beyond drift."""
    return after.low > before.high * (1 + _DRIFT)


def _check_same(name: str, before: object, after: object) -> None:
    if before != after:
        raise ValueError(f"the reports don't match: {name} is {before!r} and {after!r}")


_ROW_COLUMNS = ("prompts", "method", "batch", "n", "temperature")
_CALL_COLUMNS = (
    *(*_ROW_COLUMNS, "tokens/s before", "after"),
    *("change", "first token, ms", "tau", "equal to plain", ""),
)
_STEP_COLUMNS = ("step", "batch", "n", "ms before", "after", "change", "")
_UNMATCHED_COLUMNS = ("report", *_ROW_COLUMNS)


def _names(key: _Key) -> tuple[str, ...]:
    """Cells that say what a row measures."""
    domain, method, batch_size, block_size, temperature = key
    return (
        prompts_name(domain) if domain else "one step",
        "plain decoding" if method == "ar" else method,
        str(batch_size),
        str(block_size),
        f"{temperature:g}",
    )


def _call_cells(c: Change) -> tuple[str, ...]:
    return (
        *_names(c.key),
        f"{c.before:.0f}",
        f"{c.after:.0f}",
        _percent_change(c.before, c.after),
        _first_tokens(c),
        "-" if c.tau is None else _before_and_after(*(f"{tau:.2f}" for tau in c.tau)),
        "-" if c.equal is None else _before_and_after(*map(percent, c.equal)),
        c.verdict,
    )


def _first_tokens(c: Change) -> str:
    if c.first_token is None:
        return "-"
    return _before_and_after(*(f"{spread.median:.1f}" for spread in c.first_token))


def _step_cells(c: Change) -> tuple[str, ...]:
    cells = (c.method, str(c.batch_size), str(c.block_size), f"{c.before:.2f}", f"{c.after:.2f}")
    return (*cells, _percent_change(c.before, c.after), c.verdict)


def _before_and_after(before: str, after: str) -> str:
    return before if before == after else f"{before} to {after}"


def _percent_change(before: Spread, after: Spread) -> str:
    """ "+3 %", of the medians."""
    return f"{after.median / before.median - 1:+.0%}".replace("%", " %")
