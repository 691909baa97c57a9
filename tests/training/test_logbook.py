"""What a run writes about itself."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from flexdraft_jax.training.logbook import (
    Logbook,
    MetricsFile,
    disagreement,
    name_bad_rows,
    plot_tau,
)


def _events(directory: Path) -> list[Event]:
    """Every event that TensorBoard would read, files in the order that they were opened."""
    events = []
    for path in sorted(directory.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            events.append(Event.FromString(content[place + 12 : place + 12 + size]))
            place += size + 16  # Size, its checksum, the event, its checksum.
    return events


def test_tensorboard_gets_every_number_and_a_resume_drops_what_it_repeats(tmp_path: Path) -> None:
    for first_step in (0, 1):
        book = Logbook(tmp_path, first_step)
        for step in range(first_step + 1, 3):
            book.trained(step, {"loss": 2.0 / step, "slots": [0.5, 0.25]}, {"mfu": 0.4})
        book.evaluated(2, {"tau_code": 3.0})
        book.close()
    events = _events(tmp_path / "tensorboard")
    written = {
        (event.step, value.tag): value.simple_value
        for event in events
        for value in event.summary.value
    }
    assert written == {
        **{(step, "train/loss"): 2.0 / step for step in (1, 2)},
        **{(step, "train/slots/1"): 0.5 for step in (1, 2)},
        **{(step, "train/slots/2"): 0.25 for step in (1, 2)},
        **{(step, "speed/mfu"): pytest.approx(0.4) for step in (1, 2)},
        (2, "evaluation/tau_code"): 3.0,
    }
    # TensorBoard hides what came before from this step on.
    (restart,) = [event for event in events if event.HasField("session_log")]
    assert restart.step == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 2.0, "slots": [0.5, 0.25]},
        {"step": 2, "loss": 1.0, "slots": [0.5, 0.25]},
        {"step": 2, "tau_code": 3.0},
    ]
    assert (tmp_path / "tau.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "damaged",
    [
        *('{"step": 2, "lo', "[]", "{}", "\ufffd", '{"step": "a"}'),
        *('{"step": [1]}', '{"step": 2, "loss": {}}'),
    ],
)
def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "metrics.jsonl"
    content = '{"step": 1, "loss": 1.0}\n' + damaged
    path.write_bytes(content.encode().replace("\ufffd".encode(), b"\xff"))
    file = MetricsFile(path, first_step=4)
    file.write(3, {"loss": 0.5})
    assert file.read() == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 0.5}]


def test_the_plot_shows_every_domain_and_what_training_expects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {}
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot",
        lambda axes, steps, values, label, **style: drawn.update({label: (steps, values)}),
    )
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes: None)
    lines = [
        {"step": 1, "loss": 3.0, "expected_tau": 1.5},
        {"step": 2, "tau_code": 2.0, "tau_word_problems": 3.0},
        {"step": 4, "tau_code": 2.5, "tau_word_problems": 3.5, "accuracy_word_problems": 0.5},
    ]
    plot_tau(lines, tmp_path / "tau.png")
    assert drawn == {
        "real, code": ((2, 4), (2.0, 2.5)),
        "real, word_problems": ((2, 4), (3.0, 3.5)),
        "expected": ((1,), (1.5,)),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["tau.png"]


@pytest.mark.parametrize(("expected", "real", "warns"), [(5.0, 2.9, True), (5.0, 3.0, False)])
def test_a_warning_names_three_things_to_check(expected: float, real: float, warns: bool) -> None:
    text = disagreement(expected, real)
    assert (text is not None) == warns
    if text is not None:
        assert "real tau is 2.90 where training expects 5.00" in text
        assert all(word in text for word in ("chat template", "response mask", "positions"))


def test_bad_rows_are_named_by_index_and_first_tokens() -> None:
    tokens = np.arange(6 * 20, dtype=np.int32).reshape(6, 20)
    row_loss = np.ones(6, np.float32)
    assert name_bad_rows(tokens, row_loss) == "each of the batch's 6 rows has a finite loss"
    row_loss[3] = np.inf
    assert name_bad_rows(tokens, row_loss) == (
        "rows without a finite loss, 1 of 6: row 3 (tokens 60 61 62 63 64 65 66 67 68 69 70 71 ...)"
    )
    row_loss[:] = np.nan
    assert name_bad_rows(tokens, row_loss).endswith(" ...), and 2 more")
    assert name_bad_rows(tokens, None).startswith("rows of the batch, 6 of 6: row 0 (tokens 0 1 ")
