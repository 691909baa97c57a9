"""From a question to a report, on this machine's own device in the place of a slice."""

import dataclasses
import json
import os
import tempfile

import jax
import pytest
from jax.sharding import AbstractMesh

from flexdraft_jax.checkpoints.published import TARGETS, find_target
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.models.draft import draft_shapes
from flexdraft_jax.models.target import target_shapes
from flexdraft_jax.parallel.locks import take_lock
from flexdraft_jax.parallel.mesh import MESH_AXES, make_mesh
from flexdraft_jax.planning import plans, table, topology
from flexdraft_jax.planning.compiling import Compiled, Memory
from flexdraft_jax.planning.plans import (
    DecodePlan,
    Kept,
    TrainPlan,
    Unfinished,
    plan_decode,
    plan_train,
)
from flexdraft_jax.planning.report import plot_decode_plan
from flexdraft_jax.planning.roofline import CHIPS
from flexdraft_jax.planning.topology import parse_slice, slice_mesh
from flexdraft_jax.training.config import DraftStepConfig, OptimizerConfig, TrainDraftConfig

PLAN = DecodePlan(
    "tiny",
    "v5e:1x1",
    "tensor=1",
    batch_size=2,
    num_slots=128,
    draft_layers=1,
    calibration_rank=8,
    block_size=4,
    dtype="float32",
)
TRAINING = TrainDraftConfig(
    model=DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8),
    train=OptimizerConfig(steps=10, batch_size=2, learning_rate=1e-3),
    step=DraftStepConfig(chunk=2),
    anchors=4,
)


@pytest.fixture(autouse=True)
def here(monkeypatch, models) -> None:
    """A slice that is this machine's device, and a tiny target."""
    monkeypatch.setattr(plans, "slice_mesh", lambda of, sizes: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setitem(TARGETS, "tiny", models.target.config)


def _nbytes(tree) -> int:
    return sum(4 * leaf.size for leaf in jax.tree.leaves(tree))


def test_decoding(tmp_path, models, monkeypatch) -> None:
    config = models.target.config
    kept = Kept(tmp_path / "kept.json")
    report, case = plan_decode(PLAN, ["prefill", "parallel 4", "sequential"], kept=kept)
    by_name = {program.compiled.name: program for program in report.programs}
    assert list(by_name) == ["prefill", "ar", "parallel 4", "sequential"]
    assert report.fits
    for name, program in by_name.items():
        parts = program.compiled.memory.parts
        assert parts["weights"] == _nbytes(target_shapes(config))
        rows = 8 if name == "ar" else 2  # Plain decoding is not too easily beaten.
        assert parts["cache"] == 2 * config.num_layers * rows * 128 * 16 * 4
        assert program.compiled.memory.aliased >= parts["cache"]
        drafts = 0 if name == "ar" else _nbytes(draft_shapes(config, DraftConfig(1, 4, 8)))
        assert parts["draft"] == drafts
    sequential, plain = by_name["sequential"], by_name["ar"]
    for chip in CHIPS:
        ratio = plain.milliseconds[chip] / sequential.milliseconds[chip]
        assert sequential.speedup[chip][5] == pytest.approx(5 * ratio)
    assert not plain.speedup

    text = "".join(table.to_markdown() for table in report.tables())
    assert "Predicted" in text and "v6e" in text
    assert json.loads(json.dumps(report.to_json()))["predictions"]
    plot_decode_plan(report, case, "v5e", str(tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").stat().st_size > 1000

    # What the file holds is not compiled a second time; with other settings it is.
    nothing = Kept(tmp_path / "kept.json", compile_at_most=0)
    again, _ = plan_decode(PLAN, ["sequential"], kept=nothing)
    assert again.programs[-1] == sequential
    other = dataclasses.replace(PLAN, batch_size=4)
    for name in ("ar", "flex"):  # Each by its own name, though the first is the next.
        with pytest.raises(Unfinished, match=f"{name} of tiny on v5e:1x1"):
            nothing.get(other, name, pytest.fail)
    assert nothing.next == "ar of tiny on v5e:1x1"

    # A table has the rows that are whole, and names the others.
    monkeypatch.setattr(table, "decode_plans", lambda: [other, PLAN])
    monkeypatch.setattr(table, "_PROGRAMS", tuple(by_name))
    made = table.decode_table(nothing)
    assert [row[:4] for row in made.rows] == [("tiny", "v5litepod-1", "tensor=1", "yes")]
    assert made.note.endswith("Not compiled yet: tiny on v5litepod-1.")


def test_training(models) -> None:
    report = plan_train(TrainPlan("tiny", "v5e:1x1", "fsdp=1", TRAINING, sequence_length=32))
    (program,) = report.programs
    parts = program.compiled.memory.parts
    draft = _nbytes(draft_shapes(models.target.config, TRAINING.model))
    assert parts["draft"] == draft
    assert 2 * draft <= parts["optimizer"] < 2 * draft + 100  # Two means, and counters.
    assert program.compiled.memory.aliased >= 3 * draft
    assert program.flops > 0 and program.milliseconds["v5e"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draft_layers": 40}, "num_draft_layers=40: must be at most the target's num_layers="),
        ({"block_size": -3}, "block_size=-3: must be at least 2"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"num_slots": 4}, "num_slots=4: must be more than block_size=4"),
    ],
)
def test_sizes_that_decoding_would_refuse_are_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        plan_decode(dataclasses.replace(PLAN, **wrong))


def test_settings_that_training_would_refuse_are_refused(monkeypatch) -> None:
    def refused(message: str, **wrong) -> None:
        config = dataclasses.replace(TRAINING, **wrong)
        with pytest.raises(ValueError, match=message):
            plan_train(TrainPlan("tiny", "v5e:2x2", "fsdp=2,tensor=2", config, sequence_length=32))

    with pytest.raises(ValueError, match="sequence_length=0: must be at least 8"):
        TrainPlan("tiny", "v5e:1x1", "fsdp=1", TRAINING, sequence_length=0)
    many = DraftConfig(num_draft_layers=40, block_size=4, calibration_rank=8)
    refused("num_draft_layers=40: must be at most the target's num_layers=", model=many)
    # By the mesh that is planned for, whatever the configuration says of its own.
    mesh = AbstractMesh((1, 2, 2), MESH_AXES)
    monkeypatch.setattr(plans, "slice_mesh", lambda of, sizes: mesh)
    step = DraftStepConfig(chunk=2, microbatches=2)
    refused("mesh.fsdp=2, mesh.tensor=2: XLA compiles wrong gradients", step=step)


def test_unknown_programs_are_named() -> None:
    with pytest.raises(ValueError, match="programs=fast: must be of ar, flex, parallel 2"):
        plan_decode(PLAN, ["fast"])


def test_slices() -> None:
    of = parse_slice("v5p:2x2x1")
    assert (of.num_chips, of.accelerator_type) == (4, "v5p-8")  # Two cores a chip.
    assert parse_slice("v5e:16x16").accelerator_type == "v5litepod-256"
    for wrong in ("v5e", "v5e:8", "v7:2x2", "v5e:0x4"):
        with pytest.raises(ValueError, match=f"topology='{wrong}'"):
            parse_slice(wrong)


def test_without_libtpu_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"flexdraft_jax\[tpu_plan\]"):
        slice_mesh(parse_slice("v5e:2x4"), "tensor=8")


def test_users_of_one_machine_have_locks_of_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with topology._libtpu_alone.__wrapped__() as lock, open(lock.name, "ab") as other:
        assert not take_lock(other)
    assert [path.name for path in tmp_path.iterdir()] == [
        f"flexdraft_jax_libtpu_{os.getuid()}.lock"
    ]


def test_targets(tmp_path) -> None:
    assert find_target("Qwen3-8B").layer_weights == 4096 * 128 * 80 + 3 * 4096 * 12_288
    with pytest.raises(ValueError, match="target='Qwen9': must be a directory"):
        find_target("Qwen9")
    with pytest.raises(ValueError, match="target='xxx.*must be a directory"):
        find_target("x" * 5000)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: must hold a JSON object, not a list"):
        find_target(str(tmp_path / "config.json"))


@pytest.mark.parametrize("damage", ["whole", "memory", "fits", "seconds", "total"])
def test_damaged_programs_are_named(tmp_path, damage) -> None:
    path = tmp_path / "kept.json"
    made = Compiled("ar", True, Memory({"weights": 5}, 1, 2, 3, 11), (), 1.0)
    assert Kept(path).get(PLAN, "ar", lambda: made) == made
    assert Kept(path).get(PLAN, "ar", lambda: None) == made
    (key, entry), *_ = json.loads(path.read_text()).items()
    if damage == "whole":
        path.write_text("[" * 100_000)
    else:
        (entry["memory"] if damage == "total" else entry)[damage] = "a"
        path.write_text(json.dumps({key: entry}))
    with pytest.raises(ValueError, match="kept.json: "):
        Kept(path).get(PLAN, "ar", lambda: made)
