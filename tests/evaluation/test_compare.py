"""Two reports side by side."""

import copy
import dataclasses
import json

import pytest

from flexdraft_jax.evaluation.benchmark_report import BenchmarkReport, BenchmarkSettings
from flexdraft_jax.evaluation.compare import compare_reports, read_report
from flexdraft_jax.evaluation.decode_details import DecodeDetails
from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.step_costs import StepRow
from flexdraft_jax.evaluation.timing import Spread


def row(
    method: str,
    low: float,
    high: float,
    tau: float | None = 3.0,
    equal: int = 4,
    first_token: Spread | None = None,
) -> DecodeRow:
    speed = Spread((low + high) / 2, low, high)
    details = first_token and DecodeDetails((), (), first_token, None)
    return DecodeRow("code", 1, method, 8, speed, Spread(1, 1, 1), tau, equal, 4, details=details)


def report(*rows: DecodeRow, step: float = 2.0, **changed) -> dict:
    steps = [StepRow(1, "sequential", 8, Spread(step, step - 0.1, step + 0.1), Spread(2, 2, 2))]
    environment = {"jax": "0.10", "device": "cpu", "processor": "Xeon", "load_average": 0.1}
    whole = BenchmarkReport("tiny", environment, BenchmarkSettings(), steps, list(rows))
    return json.loads(json.dumps(dataclasses.replace(whole, **changed).to_json()))


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (row("sequential", 95, 105), ""),
        (row("sequential", 75, 81), "REGRESSION: slower"),
        (row("sequential", 75, 82), ""),  # no more than drift
        (row("sequential", 122, 130), "faster"),
        (row("sequential", 90, 110, tau=2.9), "REGRESSION: lower tau"),
        (row("sequential", 90, 110, tau=2.98), ""),
        (row("sequential", 122, 130, tau=2.9), "REGRESSION: faster, lower tau"),
        (row("sequential", 90, 110, equal=3), "REGRESSION: fewer equal"),
    ],
)
def test_a_change_counts_beyond_the_spread(after: DecodeRow, verdict: str) -> None:
    found = compare_reports(report(row("sequential", 90, 110)), report(after))
    assert [change.verdict for change in found.changes] == [verdict, ""]
    assert bool(found.regressions) == verdict.startswith("REGRESSION")
    assert [table.rows[0][-1] for table in found.tables()] == [verdict, ""]


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (Spread(11, 10.5, 12), ""),  # no more than drift
        (Spread(14, 13.3, 15), "REGRESSION: first token later"),
        (Spread(6, 5, 7), "first token sooner"),
        (None, ""),
    ],
)
def test_the_first_token_is_looked_at_like_speed(after: Spread | None, verdict: str) -> None:
    before = row("ar", 9, 11, first_token=Spread(10, 9, 12))
    found = compare_reports(report(before), report(row("ar", 9, 11, first_token=after)))
    change = found.changes[0]
    assert change.verdict == verdict
    assert bool(found.regressions) == verdict.startswith("REGRESSION")
    if found.regressions:
        assert str(change).endswith(f"n = 8: {verdict} (+0 %, first token +40 %)")
        assert "10.0 to 14.0" in found.tables()[0].rows[0]


def test_flex_may_trade_tau_for_speed() -> None:
    found = compare_reports(report(row("flex", 9, 11)), report(row("flex", 9, 11, tau=1.5)))
    assert not found.regressions


def test_a_slower_peer_is_no_regression_of_ours() -> None:
    before, after = row("huggingface, 2 threads", 9, 11), row("huggingface, 1 thread", 5, 6)
    found = compare_reports(report(before), report(after))
    assert found.changes[0].verdict == "slower" and not found.regressions


def test_a_dearer_step_is_a_regression() -> None:
    before, after = report(step=2.0), report(step=2.5)
    (change,) = compare_reports(before, after).regressions
    assert str(change) == "step, sequential, batch 1, n = 8: REGRESSION: slower (+25 %)"
    assert compare_reports(after, before).changes[0].verdict == "faster"


def test_a_peer_is_one_row_whatever_its_threads() -> None:
    before = report(row("huggingface, 2 threads", 9, 11), row("ar", 9, 11))
    after = report(row("huggingface, 1 thread", 9, 11), environment={"jax": "0.11"})
    found = compare_reports(before, after)
    assert [c.method for c in found.changes] == ["huggingface", "sequential"]
    assert found.tables()[-1].rows == [("before", "code", "plain decoding", "1", "8", "0")]
    assert "jax: 0.10 before, 0.11 after." in found.tables()[0].note
    assert "load" not in found.tables()[0].note


def test_forced_tokens_are_equal_to_nothing() -> None:
    forced = BenchmarkSettings(forced_acceptance=0.8)
    reports = [report(row("parallel", 9, 11, equal=e), settings=forced) for e in (4, 0)]
    assert not compare_reports(*reports).regressions


_ROW = report(row("ar", 9, 11))["decoding"][0]


def test_reports_that_do_not_match_are_refused() -> None:
    first = report(row("ar", 9, 11))
    for part, field, value in (
        ("environment", "device", "TPU"),
        ("environment", "processor", "EPYC"),
        ("environment", "mesh", "tensor=2"),
        ("settings", "num_prompts", 2),
    ):
        other = copy.deepcopy(first)
        other[part][field] = value
        with pytest.raises(ValueError, match=f"don't match: {part}.{field} is "):
            compare_reports(first, other)
    prompts = [first | {"prompt_digests": {"gsm8k": digest, "code": "c"}} for digest in ("a", "b")]
    with pytest.raises(ValueError, match="don't match: prompt_digests.gsm8k is 'a' and 'b'"):
        compare_reports(*prompts)
    compare_reports(prompts[0], first)  # An older report does not know.
    with pytest.raises(ValueError, match="don't match: model is 'tiny' and 'large'"):
        compare_reports(first, first | {"model": "large"})
    with pytest.raises(ValueError, match="has tau in one of them alone"):
        compare_reports(first, first | {"decoding": [_ROW | {"tau": None}]})
    with pytest.raises(ValueError, match="no method, batch size and domain is in both"):
        compare_reports(first, first | {"decoding": [], "steps": []})


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", "{}", "[" * 100_000, '{"model": 1}', "\ud800"),
        {"decoding": [{"method": "ar"}]},
        {"decoding": [_ROW | {"tau": "high"}]},
        {"decoding": [_ROW | {"tau": float("nan")}]},
        {"decoding": [_ROW | {"num_equal": 400}]},
        {"decoding": [_ROW, _ROW]},
        {"decoding": [_ROW | {"num_prompts": 0}]},
        {"decoding": [_ROW | {"batch_size": []}]},
        {"decoding": [_ROW | {"tokens_per_second": {"median": 0, "low": 0, "high": 0}}]},
        {"settings": {"repeats": "many"}},
        {"environment": None},
    ],
)
def test_files_that_are_no_reports_are_refused(content: str | dict, tmp_path) -> None:
    path = tmp_path / "bench.json"
    if isinstance(content, dict):
        content = json.dumps(report(row("ar", 9, 11)) | content)
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"bench.json: must be a file that infer/benchmark"):
        read_report(path)


def test_few_repeats_are_apart_by_chance(tmp_path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report(row("ar", 9, 11))))
    assert read_report(path)["model"] == "tiny"
    path.write_text(json.dumps(report(settings=BenchmarkSettings(repeats=3))))
    with pytest.raises(ValueError, match="repeats=3, which is too few; must be at least 4"):
        read_report(path)
