"""Files beside the weights: profiles, plans, reports, configurations, data."""

import dataclasses
import functools
import json
import math
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import wild
from trial import Entry, Trial

from flexdraft_jax.checkpoints.published import find_target
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.data.conversations import parse_line, read_lines
from flexdraft_jax.data.corpus import conversation_lines
from flexdraft_jax.data.prepare import PrepareConfig, prepare
from flexdraft_jax.data.prepared import Prepared, load_prepared
from flexdraft_jax.data.tasks import TASKS, load_task
from flexdraft_jax.decoding.costs import (
    CostModel,
    Profile,
    estimate_costs,
    find_profile,
    load_profile,
    save_profile,
)
from flexdraft_jax.evaluation.benchmark_report import BenchmarkReport, BenchmarkSettings
from flexdraft_jax.evaluation.compare import compare_reports, read_report
from flexdraft_jax.evaluation.decode_details import DecodeDetails
from flexdraft_jax.evaluation.decode_speed import DecodeRow
from flexdraft_jax.evaluation.step_costs import StepRow
from flexdraft_jax.evaluation.timing import Spread
from flexdraft_jax.parallel.mesh import parse_mesh
from flexdraft_jax.planning.compiling import Compiled, Memory, Traffic
from flexdraft_jax.planning.plans import DecodePlan, Kept
from flexdraft_jax.planning.topology import parse_slice
from flexdraft_jax.training.config import (
    CorpusConfig,
    OptimizerConfig,
    TargetModelConfig,
    TrainDraftConfig,
    TrainTargetConfig,
)
from flexdraft_jax.training.config_files import apply_overrides, load_config
from flexdraft_jax.training.optimizer import make_optimizer

_CONFIGS = Path(__file__).parents[2] / "configs"
_DRAFT = DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8)


def _profile(rng: random.Random, folder: Path) -> Trial:
    costs = [
        estimate_costs(tiny.CONFIG, _DRAFT, jnp.float32, 4, rows, slots)
        for rows, slots in ((1, 64), (8, 512))
    ]
    path = folder / "profile.json"
    save_profile(Profile(tuple(costs)), path)
    wild.write_json(rng, path, json.loads(path.read_text()))

    def run() -> None:
        load_profile(path)
        profile = find_profile(tiny.CONFIG, _DRAFT, jnp.float32, path, 4, None)
        at = CostModel(tiny.CONFIG, _DRAFT, jnp.float32, 4, profile).at(2, 128)
        numbers = [at.draft, at.draw, *at.verify.values(), *at.parallel.values()]
        assert all(0 < x < math.inf for x in numbers), f"costs {numbers}"

    return Trial(run, (path.name,), repr(path.read_bytes()[:3000]))


def _plans(rng: random.Random, folder: Path) -> Trial:
    plan = DecodePlan("Qwen3-0.6B", "v5e:2x4", "tensor=8")
    memory = Memory({"weights": 5}, 1, 2, 3, 11, None)
    traffic = Traffic("all-reduce", 8, 4, 2, True, 12.5)
    program = Compiled(name="ar", fits=True, memory=memory, collectives=(traffic,), seconds=1.0)
    path = folder / "programs.json"
    Kept(path).get(plan, "ar", lambda: program)
    wild.write_json(rng, path, json.loads(path.read_text()))

    def run() -> None:
        found = Kept(path).get(plan, "ar", lambda: program)
        # As it is used: numbers where there are to be some.
        assert isinstance(found.fits, bool) and found.memory.total + found.seconds >= 0
        assert all(one.sent + one.nbytes >= 0 for one in found.collectives)

    return Trial(run, (path.name,), repr(path.read_bytes()[:3000]))


def _report() -> dict[str, Any]:
    details = DecodeDetails((), (), Spread(2, 1, 3), None)
    rows = [
        DecodeRow(
            "code", 1, method, 8, Spread(9, 8, 10), Spread(1, 1, 1), 3.0, 4, 4, details=details
        )
        for method in ("ar", "sequential")
    ]
    steps = [StepRow(1, "sequential", 8, Spread(2, 1, 3), Spread(2, 2, 2))]
    whole = BenchmarkReport("tiny", {"device": "cpu"}, BenchmarkSettings(), steps, rows)
    return json.loads(json.dumps(whole.to_json()))


def _compare(rng: random.Random, folder: Path) -> Trial:
    paths = [folder / "before.json", folder / "after.json"]
    for path in paths:
        path.write_text(json.dumps(_report()))
    wild.write_json(rng, rng.choice(paths), _report())

    def run() -> None:
        comparison = compare_reports(*map(read_report, paths))
        for table in comparison.tables():
            table.to_markdown(), table.to_rich()
        list(map(str, comparison.regressions))

    names = ("before.json", "after.json", "the reports don't match")
    return Trial(run, names, " ".join(repr(path.read_bytes()[:3000]) for path in paths))


def _leaf_names(config: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = dataclasses.is_dataclass(value)
        names += _leaf_names(value, f"{prefix}{field.name}.") if inner else [prefix + field.name]
    return names


_DRAFT_RUN = TrainDraftConfig(_DRAFT, OptimizerConfig(steps=9, batch_size=4, learning_rate=1e-3))
_TARGET_RUN = TrainTargetConfig(
    TargetModelConfig(), CorpusConfig(), OptimizerConfig(steps=9, batch_size=4, learning_rate=1e-3)
)


def _overrides(rng: random.Random, folder: Path) -> Trial:
    base: Any = rng.choice((_DRAFT_RUN, _TARGET_RUN))
    known = _leaf_names(base)
    overrides = []
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(known)
        if rng.random() < 0.2:
            name = rng.choice((name + "s", name[1:], name + ".x", name.split(".")[0], "", "a b"))
        near = ("2", "1e-3", "0.5", "true", "adamw", "bfloat16", "1_000", "inf", "nan", "-1")
        text = rng.choice((*near, str(wild.value(rng))))
        overrides.append(name + rng.choice(("=", "=", "=", "==", "", " = ")) + text)

    def run() -> None:
        config = apply_overrides(base, overrides)
        for name in _leaf_names(config):
            found = config
            for part in name.split("."):
                found = getattr(found, part)
            if isinstance(found, float | int):
                assert math.isfinite(found), f"{name} is {found}"
                assert isinstance(found, bool) or abs(found) < 2**63, f"{name} is {found}"
        if isinstance(config, TrainDraftConfig):
            config.step.check(config.train.batch_size, config.anchors)
        else:
            config.model.build(260, (1,))
        make_optimizer(config.train)

    # Sizes of a model are checked where it is built, and so named without their group.
    names = [text for name in known for text in (name, name.removeprefix("model."))]
    names += [repr(text) for o in overrides for text in (o, o.partition("=")[0].strip())]
    return Trial(run, tuple(names), str(overrides)[:2000])


def _config_file(rng: random.Random, folder: Path) -> Trial:
    source = rng.choice(sorted(_CONFIGS.glob("*_draft.py")))
    path = folder / "run.py"
    text = source.read_text()
    words = ("None", "'a'", "-1", "1e400", "{}", "[]", "nan", "1/0", "object()", "raise", "get")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(wild.damaged(rng, source.read_bytes()))
    elif kind == 1:
        path.write_text(f"def get_config():\n    return {rng.choice(words)}\n")
    else:
        pieces = text.split("=")
        place = rng.randrange(1, len(pieces))
        end = min(
            (pieces[place] + sign).find(sign) for sign in ",)" if sign in pieces[place] + sign
        )
        pieces[place] = rng.choice(words) + pieces[place][end:]
        path.write_text("=".join(pieces))

    def run() -> None:
        json.dumps(dataclasses.asdict(load_config(path, TrainDraftConfig)), allow_nan=False)

    return Trial(run, (str(path),), repr(path.read_bytes()[-1500:]))


def _names(rng: random.Random, folder: Path) -> Trial:
    read, good = rng.choice(
        ((parse_mesh, "data=2,tensor=4"), (parse_slice, "v5e:2x4"), (find_target, "Qwen3-8B"))
    )
    text = wild.damaged(rng, good.encode())[:200].decode(errors="replace")
    if rng.random() < 0.3:
        text = rng.choice((str(wild.value(rng)), good.replace("2", "9" * 5000), str(folder)))
    if read is find_target and rng.random() < 0.5:
        path = folder / "target.json"
        config = next(Path(__file__).parents[1].glob("references/*/config.json"))
        wild.write_json(rng, path, json.loads(config.read_text()))
        text = str(path)
    names = ("mesh", "topology=", "target=", "target.json", "config.json", str(folder))
    return Trial(lambda: read(text), names, f"{read.__name__}({text[:300]!r})")


@functools.cache
def _data() -> tuple[Path, Prepared, Path]:
    """A whole build, and one that was interrupted before its last file."""
    home = Path(tempfile.mkdtemp(prefix="fuzzdata"))
    (home / "lines.jsonl").write_text("".join(conversation_lines(["word_problems"], 12, seed=0)))
    config = PrepareConfig(sequence_length=256, held_out=2)

    with mock.patch("flexdraft_jax.data.prepare.shutil"):  # Which would remove "encoded".
        prepared = prepare(home / "lines.jsonl", _tokenizer(), home / "data", config)
    return home, prepared, home / "data"


def _tokenizer() -> Any:
    return tiny.models().tokenizer


def _same_data(found: Prepared) -> None:
    _, wanted, _ = _data()
    assert found.held_out == wanted.held_out and found.report == wanted.report
    assert (found.fingerprint, found.sequence_length) == (wanted.fingerprint, 256)
    assert found.tokenizer_fingerprint == wanted.tokenizer_fingerprint
    assert len(found.rows) == len(wanted.rows)
    for index in range(len(found.rows)):
        ours, theirs = found.rows[index], wanted.rows[index]
        assert all((ours[name] == theirs[name]).all() for name in theirs)


def _prepared(rng: random.Random, folder: Path) -> Trial:
    wild.copy(_data()[2], folder / "data")
    shutil.rmtree(folder / "data/encoded")
    what = wild.damage_folder(rng, folder / "data")
    return Trial(lambda: _same_data(load_prepared(folder / "data")), (str(folder),), what)


def _going_on(rng: random.Random, folder: Path) -> Trial:
    """An interrupted build goes on with what it has left."""
    home, _, data = _data()
    wild.copy(data, folder / "data")
    (folder / "data/prepared.json").unlink()
    files = [*(folder / "data/encoded").iterdir(), folder / "data/settings.json"]
    what = wild.damage_folder(rng, folder / "data", files)
    config = PrepareConfig(sequence_length=256, held_out=2)

    def run() -> None:
        _same_data(prepare(home / "lines.jsonl", _tokenizer(), folder / "data", config))

    return Trial(run, (str(folder), "output="), what)


def _conversations(rng: random.Random, folder: Path) -> Trial:
    path = folder / "lines.jsonl"
    good: list[Any] = [json.loads(line) for line in conversation_lines(["code"], 4, seed=1)]
    good += [
        {"prompt": "Hi", "response": "Ho"},
        {"text": "Once"},
        {"tokens": [5, 7, 9], "response_mask": [False, True, True]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    ]
    lines = [wild.as_json(wild.changed(rng, line)).encode() for line in good]
    lines = [wild.damaged(rng, x).replace(b"\n", b"") if rng.random() < 0.3 else x for x in lines]
    path.write_bytes(b"\n".join(lines))
    config = PrepareConfig(sequence_length=64, held_out=rng.choice((0, 0, 1, 2)))

    def run() -> None:
        data = prepare(path, _tokenizer(), folder / "data", config)
        report, rejected = data.report, (folder / "data/rejected.jsonl").read_text().splitlines()
        numbers = []
        for number, line in read_lines(path):
            try:
                parse_line(line)
            except ValueError:
                numbers.append(number)
        assert report.lines == report.conversations + len(rejected), "lines are lost"
        assert set(numbers) <= {json.loads(line)["line"] for line in rejected}

    # Where there are no lines that can be used, that is said.
    return Trial(run, (str(path), "held_out="), repr(path.read_bytes()[:3000]))


def _task(rng: random.Random, folder: Path) -> Trial:
    name = rng.choice(sorted(TASKS))
    field = TASKS[name].fields[0]
    records: list[Any] = [{field: f"question {i}", "answer": 3} for i in range(4)]
    path = folder / f"{name}{rng.choice(('.jsonl', '.parquet'))}"
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(wild.as_json(wild.changed(rng, record)) + "\n" for record in records)
        )
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    if path.suffix != ".jsonl" or rng.random() < 0.3:
        path.write_bytes(wild.damaged(rng, path.read_bytes()))

    def run() -> None:
        prompts = load_task(name, folder)
        assert all(prompt.strip() and prompt.encode() for prompt in prompts)

    return Trial(run, (path.name,), f"{path.name}: {path.read_bytes()[:1000]!r}")


ENTRIES: list[Entry] = [
    Entry("step costs", _profile),
    Entry("programs of a plan", _plans),
    Entry("two reports of the benchmark", _compare),
    Entry("overrides of a configuration", _overrides),
    Entry("a configuration file", _config_file),
    Entry("meshes, slices, names", _names),
    Entry("prepared data", _prepared),
    Entry("a build that goes on", _going_on),
    Entry("conversations", _conversations),
    Entry("a public benchmark's file", _task),
]
