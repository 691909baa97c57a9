"""What steps cost: profiles on disk, the nearest measurement, estimates."""

import dataclasses
import functools
import json

import jax
import pytest
from jax.sharding import AbstractMesh

import flexdraft_jax as fd
from flexdraft_jax.decoding import costs as module
from flexdraft_jax.decoding.costs import (
    NEXT_TO_NOTHING,
    PROFILES_VARIABLE,
    CostModel,
    Profile,
    StepCosts,
    Variant,
    draft_buckets,
    estimate_costs,
    find_profile,
    flex_buckets,
    flex_variants,
    load_profile,
    profile_path,
    save_profile,
)
from flexdraft_jax.evaluation.random_targets import RANDOM_TARGETS
from flexdraft_jax.parallel.mesh import MESH_AXES

# Qwen3-8B with a drafter of the published size.
LARGE = fd.TargetConfig("qwen3", 151936, 4096, 12288, 36, 32, 8, 128)
LARGE_DRAFT = fd.DraftConfig(num_draft_layers=5, block_size=16, calibration_rank=1024)
COSTS = StepCosts(4, 2, 128, {0: 1.0, 3: 2.0}, 0.5, {3: 2.25}, draw=0.125)


@dataclasses.dataclass
class FakeDevice:
    platform: str
    device_kind: str


@pytest.fixture
def use_device(monkeypatch):
    """use_device(platform, kind, processors) makes this machine look like another."""

    def use(platform: str, kind: str, processors: int = 2) -> None:
        monkeypatch.setattr(jax, "devices", lambda: [FakeDevice(platform, kind)])
        monkeypatch.setattr(module.os, "cpu_count", lambda: processors)

    return use


@pytest.mark.parametrize(
    ("block_size", "fixed", "flex"),
    [
        (1, (0,), (0,)),
        (2, (1,), (1,)),
        (3, (1, 2), (2,)),
        (4, (1, 3), (3,)),
        (8, (1, 3, 7), (3, 7)),
        (16, (1, 3, 7, 15), (3, 7, 15)),
        (17, (1, 3, 7, 15, 16), (3, 7, 15, 16)),
    ],
)
def test_numbers_of_drafts(block_size, fixed, flex):
    assert draft_buckets(block_size) == fixed
    assert flex_buckets(block_size) == flex


def test_of_parallel_and_sequential_the_cheaper_is_compiled():
    assert COSTS.of(Variant("ar", 0)) == 1.0
    assert COSTS.of(Variant("sequential", 0)) == 1.5
    assert COSTS.of(Variant("sequential", 3)) == 2.5
    assert COSTS.of(Variant("parallel", 3)) == 2.25
    # One draw for each candidate, and one for each of three drafts.
    assert COSTS.of(Variant("ar", 0), draws=True) == 1.125
    assert COSTS.of(Variant("sequential", 0), draws=True) == 2.0
    assert COSTS.of(Variant("parallel", 3), draws=True) == 3.125
    always = (Variant("ar", 0), Variant("sequential", 0))
    assert flex_variants(COSTS) == (*always, Variant("parallel", 3))
    dearer = dataclasses.replace(COSTS, parallel={3: 2.6})
    assert flex_variants(dearer) == (*always, Variant("sequential", 3))


def test_a_profile_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "profile.json"
    profile = Profile((COSTS, dataclasses.replace(COSTS, batch_size=8, draft=0.25)))
    save_profile(profile, path)
    assert load_profile(path) == profile
    assert [file.name for file in path.parent.iterdir()] == ["profile.json"]


def test_newer_measurements_take_the_place_of_older_ones():
    newer = dataclasses.replace(COSTS, draft=9.0)
    other = dataclasses.replace(COSTS, batch_size=1)
    assert Profile((COSTS,)).updated([newer, other]).costs == (other, newer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft": -1.0}, r"costs\[0\].draft=-1.0: must be a positive number"),
        ({"draft": float("nan")}, r"costs\[0\].draft=nan"),
        ({"verify": {"0": 1.0}}, r"costs\[0\].verify.3 is missing"),
        ({"parallel": None}, r"costs\[0\].parallel.3 is missing"),
        ({"block_size": 1}, r"costs\[0\].block_size=1"),
        ({"batch_size": 0}, r"costs\[0\].batch_size=0"),
    ],
)
def test_a_damaged_profile_is_named(tmp_path, change, message):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"costs": [{**dataclasses.asdict(COSTS), **change}]}))
    with pytest.raises(ValueError, match=message) as error:
        load_profile(path)
    assert "profile.json: not a profile of step costs" in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"costs": 3}', '{"costs": [3]}', "[" * 100_000, None]
)
def test_a_file_that_is_no_profile(tmp_path, text):
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="profile.json: not a profile of step costs"):
        load_profile(path)


def test_the_usual_place_depends_on_what_costs_depend_on(monkeypatch, tmp_path, use_device):
    monkeypatch.setenv(PROFILES_VARIABLE, str(tmp_path))
    here = profile_path(LARGE, LARGE_DRAFT, "bfloat16")
    assert here.parent == tmp_path
    same = dataclasses.replace(LARGE, eos_token_ids=(1,))
    assert profile_path(same, dataclasses.replace(LARGE_DRAFT, block_size=8), "bfloat16") == here
    others = [
        profile_path(LARGE, LARGE_DRAFT, "float32"),
        profile_path(dataclasses.replace(LARGE, hidden_size=2048), LARGE_DRAFT, "bfloat16"),
        profile_path(LARGE, dataclasses.replace(LARGE_DRAFT, num_draft_layers=4), "bfloat16"),
    ]
    use_device("gpu", "NVIDIA H100 80GB HBM3")
    others.append(profile_path(LARGE, LARGE_DRAFT, "bfloat16"))
    assert len({here, *others}) == 5


def test_a_mesh_has_a_profile_of_its_own_unless_weights_are_whole(use_device):
    use_device("tpu", "TPU v5 lite")

    def path(*sizes: int):
        return profile_path(LARGE, LARGE_DRAFT, "bfloat16", AbstractMesh(sizes, MESH_AXES))

    one = profile_path(LARGE, LARGE_DRAFT, "bfloat16")
    assert path(1, 1, 1) == path(8, 1, 1) == one
    assert path(2, 1, 4) == path(1, 1, 4)
    assert len({one, path(1, 1, 4), path(1, 1, 8), path(1, 4, 1)}) == 4


def test_without_the_variable_profiles_are_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv(PROFILES_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (
        profile_path(LARGE, LARGE_DRAFT, "float32").parent == tmp_path / "home/.cache/flexdraft_jax"
    )


def test_a_profile_is_given_or_named_or_found(monkeypatch, tmp_path):
    monkeypatch.setenv(PROFILES_VARIABLE, str(tmp_path))
    models = LARGE, LARGE_DRAFT, "float32"
    profile = Profile((COSTS,))
    find = functools.partial(find_profile, mesh=None)
    assert find(*models, None, 4) is None
    assert find(*models, profile, 4) is profile
    save_profile(profile, tmp_path / "named.json")
    assert find(*models, tmp_path / "named.json", 4) == profile
    save_profile(profile, profile_path(*models))
    assert find(*models, None, 4) == profile
    with pytest.raises(ValueError, match="missing.json: not a profile"):
        find(*models, str(tmp_path / "missing.json"), 4)
    with pytest.raises(TypeError, match="profile=3: must be a Profile, a path or None"):
        find(*models, 3, 4)
    # What lies in the usual place may have other block sizes; what was asked for must not.
    assert find(*models, None, 8) == profile
    for given, name in ((profile, ""), (tmp_path / "named.json", "='.*named.json'")):
        with pytest.raises(ValueError, match=rf"profile{name}: .* block_size=8, only of \[4\]"):
            find(*models, given, 8)


def test_what_was_measured_counts_and_sizes_between_are_scaled():
    def model(profile: Profile | None) -> CostModel:
        return CostModel(LARGE, LARGE_DRAFT, "bfloat16", 4, profile)

    estimated = model(None)
    larger = dataclasses.replace(COSTS, batch_size=16, verify={0: 4.0, 3: 9.0})
    measured = model(Profile((COSTS, larger)))
    assert measured.at(2, 128) == COSTS
    assert measured.at(16, 128) == larger
    unknown = Profile((dataclasses.replace(COSTS, draw=NEXT_TO_NOTHING),))
    assert model(unknown).at(2, 128).draw == estimated.at(2, 128).draw
    near = measured.at(32, 256)
    factor = estimated.at(32, 256).verify[3] / estimated.at(16, 128).verify[3]
    assert factor > 1 and near.verify[3] == pytest.approx(9.0 * factor)
    assert (near.batch_size, near.num_slots) == (32, 256)
    # Another block size was not measured at all.
    other = dataclasses.replace(measured, block_size=8)
    assert other.at(2, 128) == dataclasses.replace(estimated, block_size=8).at(2, 128)


def test_estimates_of_an_accelerator(use_device):
    use_device("gpu", "NVIDIA H100 80GB HBM3")
    one = estimate_costs(LARGE, LARGE_DRAFT, "bfloat16", 16, 1, 1024)
    # 15 GB of weights over 3.35 TB/s, and 36 layers' overhead.
    assert one.verify[0] == pytest.approx(4.5 + 1.8, rel=0.05)
    # While memory is the limit, verifying is nearly free, and a second pass is not.
    assert one.verify[15] < 1.1 * one.verify[0]
    assert one.parallel[3] < one.verify[3] + one.draft
    many = estimate_costs(LARGE, LARGE_DRAFT, "bfloat16", 16, 256, 1024)
    assert many.verify[15] > 3 * many.verify[0]
    assert many.parallel[15] > 2 * (many.verify[15] + many.draft)
    use_device("tpu", "TPU v9")  # Nobody knows it yet.
    assert estimate_costs(LARGE, LARGE_DRAFT, "bfloat16", 16, 1, 1024).verify[0] > one.verify[0]


def test_estimates_of_a_cpu_are_near_what_was_measured(use_device):
    """In plain steps, of the 10 M target on two cores; the README has the measurements."""
    use_device("cpu", "cpu", processors=2)
    draft = fd.DraftConfig(num_draft_layers=2, block_size=8, calibration_rank=64)
    for block_size, sequential, parallel in ((4, 1.73, 1.77), (8, 1.98, 2.72)):
        costs = estimate_costs(RANDOM_TARGETS["10m"], draft, "float32", block_size, 1, 256)
        largest = block_size - 1
        for schedule, measured in (("sequential", sequential), ("parallel", parallel)):
            ratio = costs.of(Variant(schedule, largest)) / costs.verify[0]
            assert ratio == pytest.approx(measured, rel=0.25)
    assert costs.verify[0] == pytest.approx(2.25, rel=0.5)


def test_everything_larger_costs_more(use_device):
    use_device("cpu", "cpu", processors=2)
    small = estimate_costs(LARGE, LARGE_DRAFT, "float32", 8, 1, 128)
    for batch_size, num_slots in ((2, 128), (1, 256)):
        larger = estimate_costs(LARGE, LARGE_DRAFT, "float32", 8, batch_size, num_slots)
        assert larger.draft > small.draft
        assert all(larger.verify[v] > small.verify[v] for v in small.verify)
        assert all(larger.parallel[v] > small.parallel[v] for v in small.parallel)
    assert small.verify[0] < small.verify[3] < small.verify[7]
    assert small.parallel[3] < small.parallel[7]


def test_a_home_that_is_none_has_no_profile(monkeypatch):
    def no_home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(PROFILES_VARIABLE)
    monkeypatch.setattr(module.pathlib.Path, "home", no_home)
    assert find_profile(LARGE, LARGE_DRAFT, "float32", None, 16, None) is None
