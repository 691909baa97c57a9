"""Counts of a step, against numbers worked out by hand."""

import dataclasses

import pytest

from flexdraft_jax.config import DraftConfig, Experts, TargetConfig
from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.models.scopes import StepPart
from flexdraft_jax.parallel.devices import Device
from flexdraft_jax.planning.roofline import (
    DecodeWork,
    MeshParts,
    Message,
    Part,
    crossover,
    plain_batch,
)

_TARGET = TargetConfig("qwen3", 1000, 64, 128, 3, 8, 4, 16)
_DRAFT = DraftConfig(num_draft_layers=2, block_size=4, calibration_rank=10)
_CHIP = Device(flops=1e12, bandwidth=1e10, interconnect=1e10)
_LAYER = 64 * 16 * (8 + 8 + 4 + 4) + 3 * 64 * 128


_ONE = MeshParts()


def work(mesh: MeshParts = _ONE) -> DecodeWork:
    return DecodeWork(_TARGET, _DRAFT, 4, "bfloat16", mesh, num_slots=100)


def test_a_plain_step() -> None:
    step = work().step(Variant("ar", 0), 2)
    head = 1000 * 64
    cache = 2 * 3 * 101 * 2 * 4 * 16  # Rows, layers, slots and the token, keys and values.
    assert step.traffic == 2 * (3 * _LAYER + head + cache)
    attention = 3 * 4 * 2 * 101 * 8 * 16
    assert step.flops == 2 * 2 * (3 * _LAYER + head) + attention
    assert not step.messages


def test_tensor_parallel_parts() -> None:
    whole = work().step(Variant("sequential", 3), 4)
    step = work(MeshParts(data=2, tensor=4)).step(Variant("sequential", 3), 8)
    # Two rows for each row's four: half the rows a chip has, and a quarter of each.
    assert work(MeshParts(tensor=4)).step(Variant("sequential", 3), 4).flops == whole.flops / 4
    assert step.flops == whole.flops / 4
    # Two sums a layer: of 4 rows times 4 tokens, in the target's layers and again in the draft's.
    assert step.messages == tuple(
        Message("all-reduce", 2 * 3 / 4 * 2 * 16 * 64, 4, 2 * layers) for layers in (1, 2, 2)
    )


def test_key_value_heads_that_do_not_divide_are_read_whole_by_every_chip() -> None:
    def cache(tensor: int) -> float:
        parts = work(MeshParts(tensor=tensor)).step(Variant("ar", 0), 1).parts
        return parts[1].traffic  # Of the attention of a layer.

    assert cache(4) == cache(1) / 4
    assert cache(8) == cache(1)


def test_the_two_schedules() -> None:
    """A parallel step reads the target once; a sequential one multiplies fewer mask tokens."""
    parallel, sequential = (
        work().step(Variant(schedule, 3), 1) for schedule in ("parallel", "sequential")
    )
    assert parallel.traffic < sequential.traffic
    assert parallel.flops > sequential.flops
    assert sequential.flops > work().step(Variant("ar", 3), 1).flops
    found = crossover(work(), _CHIP, largest=64)
    assert found is not None
    for size, faster in ((found - 1, parallel), (found, sequential)):
        times = {
            name: work().step(Variant(name, 3), size).milliseconds(_CHIP)
            for name in ("parallel", "sequential")
        }
        assert min(times, key=times.__getitem__) == (
            "parallel" if faster is parallel else "sequential"
        )


def test_the_parts_of_a_step() -> None:
    """Two rows of four candidates; drafting, three heads and four masks, or as many a candidate."""
    mlp, head = 3 * 64 * 128, 1000 * 64

    def counted(schedule: str) -> dict[StepPart, float]:
        return {k: w.flops for k, w in work().by_part(Variant(schedule, 3), 2).items()}

    def attention(queries: int, keys: int) -> int:
        return 4 * 2 * queries * keys * 8 * 16

    layer = 2 * 8 * _LAYER + attention(4, 104)
    plain = {
        StepPart.SHALLOW_LAYERS: layer,
        StepPart.DRAFT_LAYERS: 2 * layer,
        StepPart.LM_HEAD: 2 * 8 * head,
    }
    assert counted("ar") == plain
    drafting = plain | {
        StepPart.LM_HEAD: 2 * 14 * head,
        StepPart.CALIBRATION: 2 * 6 * 10 * (2 * 64 + 1000),
    }
    assert counted("sequential") == drafting | {StepPart.MASK_TOKENS: 2 * layer}
    assert counted("parallel") == drafting | {
        StepPart.DRAFT_LAYERS: 2 * (layer + 2 * 32 * mlp),
        StepPart.MASK_TOKENS: 2 * (2 * 32 * (_LAYER - mlp) + attention(16, 108)),
    }


def test_of_experts_those_of_a_steps_tokens_are_read() -> None:
    """Ten of which each token takes two: few tokens fetch theirs, many go through all."""
    target = dataclasses.replace(_TARGET, experts=Experts(number=10, per_token=2, normalize=True))
    mlp = 3 * 64 * 128
    attention = _LAYER - mlp + 64 * 10  # And the router.

    def layer(schedule: str, num_drafts: int, batch_size: int) -> Part:
        counts = DecodeWork(target, _DRAFT, 4, "bfloat16", _ONE, num_slots=100)
        return counts.step(Variant(schedule, num_drafts), batch_size).parts[0]

    for batch_size, read, multiplied in ((1, 2, 2), (5, 10, 2), (6, 10, 10)):
        found = layer("ar", 0, batch_size)
        assert found.traffic == 2 * (attention + read * mlp)
        assert found.flops == 2 * batch_size * (attention + multiplied * mlp)
    # Four candidates take eight experts at most; with their sixteen mask tokens, all ten.
    counts = DecodeWork(target, _DRAFT, 4, "bfloat16", _ONE, num_slots=100)
    parts = counts.by_part(Variant("parallel", 3), 1)
    candidates, _, riding = parts[StepPart.DRAFT_LAYERS].parts
    own, _ = parts[StepPart.MASK_TOKENS].parts
    assert candidates.traffic + riding.traffic == 2 * (attention + 10 * mlp)
    own_attention = _LAYER - mlp
    assert own.traffic == 2 * own_attention
    flops = candidates.flops + own.flops + riding.flops
    assert flops == 2 * 20 * (attention + 10 * mlp)


def test_a_part_takes_its_arithmetic_or_its_traffic_and_messages_come_on_top() -> None:
    step = work(MeshParts(tensor=2)).step(Variant("ar", 0), 1)
    seconds = sum(p.times * max(p.flops / 1e12, p.traffic / 1e10) for p in step.parts)
    seconds += sum(m.times * max(2e-6, m.sent / 1e10) for m in step.messages)
    assert step.milliseconds(_CHIP) == pytest.approx(1e3 * seconds)


def test_plain_decoding_is_not_too_easily_beaten() -> None:
    assert plain_batch(1, MeshParts(tensor=8)) == 8
    assert plain_batch(2, MeshParts(data=2, tensor=4)) == 16
    assert plain_batch(64, MeshParts(data=2, tensor=4)) == 64
