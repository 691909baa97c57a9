"""What libtpu makes of the real programs at the shape of Qwen3-8B. Minutes: `make test-tpu`."""

import importlib.util
from collections import Counter

import pytest

from flexdraft_jax.checkpoints.published import TARGETS
from flexdraft_jax.config import DraftConfig
from flexdraft_jax.decoding.costs import Variant
from flexdraft_jax.planning.compiling import GIB, Compiled, compile_program
from flexdraft_jax.planning.decode_plan import DecodeCase, DecodeStep, abstract_state, lower_step
from flexdraft_jax.planning.hlo import Program
from flexdraft_jax.planning.topology import parse_slice, slice_mesh
from flexdraft_jax.planning.train_plan import TrainCase, lower_train_step
from flexdraft_jax.training.config import DraftStepConfig, OptimizerConfig, TrainDraftConfig

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]

_TARGET = TARGETS["Qwen3-8B"]
_DRAFT = DraftConfig(num_draft_layers=5, block_size=16, calibration_rank=1024)
_CHIPS = 8
# All layers that a sequential step goes through; in each of them two sums.
_LAYERS = _TARGET.num_layers + _DRAFT.num_draft_layers


@pytest.fixture(scope="module")
def case() -> DecodeCase:
    return DecodeCase(
        target=_TARGET,
        draft=_DRAFT,
        mesh=slice_mesh(parse_slice("v5e:2x4"), f"tensor={_CHIPS}"),
        batch_size=32,
        num_slots=2048,
        block_size=16,
    )


@pytest.fixture(scope="module")
def decoding(case: DecodeCase) -> tuple[Compiled, Program]:
    step = DecodeStep("sequential", case.batch_size, (Variant("sequential", 15),))
    compiled, program = compile_program(step.name, *lower_step(case, step))
    assert program is not None, compiled
    return compiled, program


def test_the_cache_is_written_in_place(case: DecodeCase, decoding) -> None:
    compiled, program = decoding
    assert compiled.memory.aliased >= compiled.memory.parts["cache"]
    state = abstract_state(case, case.batch_size, case.block_size)
    one = state.cache.keys[0]
    nbytes = 2 * one.size // _CHIPS
    assert compiled.memory.parts["cache"] == 2 * _TARGET.num_layers * nbytes
    assert not program.copies(nbytes)
    # Nor by another name than a copy.
    assert compiled.memory.temporaries < compiled.memory.parts["cache"]


def test_logits_never_are_whole_in_float32(case: DecodeCase, decoding) -> None:
    _, program = decoding
    vocab, tokens = _TARGET.vocab_size, case.batch_size * case.block_size
    assert not program.buffers(lambda a: a.dtype == "f32" and vocab in a.shape)
    assert not program.buffers(lambda a: a.dtype == "f32" and a.nbytes > 4 * tokens * vocab / 8)


def test_a_layer_has_two_sums(case: DecodeCase, decoding) -> None:
    compiled, _ = decoding
    in_step = [c for c in compiled.collectives if c.in_step]
    hidden = 2 * case.batch_size * case.block_size * _TARGET.hidden_size
    sums = Counter({c.nbytes: c.times for c in in_step if c.kind == "all-reduce"})
    # One more puts the candidates' embeddings together.
    assert sums[hidden] == 2 * _LAYERS + 1
    # All the others are of what is chosen from: less than one layer sends.
    rest = sum(c.sent * c.times for c in in_step if c.nbytes != hidden)
    layer = sum(c.sent * c.times for c in in_step if c.nbytes == hidden) / _LAYERS
    assert rest < layer


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5e:16x16"])
def test_a_training_step(topology: str) -> None:
    of = parse_slice(topology)
    config = TrainDraftConfig(
        model=_DRAFT,
        train=OptimizerConfig(steps=4700, batch_size=of.num_chips, learning_rate=5e-4),
        step=DraftStepConfig(compute_dtype="bfloat16", chunk=64, remat=True),
        anchors=256,
    )
    case = TrainCase(_TARGET, config, slice_mesh(of, f"fsdp={of.num_chips}"), 2048)
    compiled, program = compile_program("train step", *lower_train_step(case))
    assert compiled.fits and compiled.memory.total < 16 * GIB
    # The state alone comes back, in place of the old one: nothing of the target's shape.
    state = compiled.memory.parts["draft"] + compiled.memory.parts["optimizer"]
    assert state <= compiled.memory.aliased < 1.1 * state
    # Put together once for all chunks; nor does it go round in parts.
    head = 2 * _TARGET.vocab_size * _TARGET.hidden_size
    moved = [c for c in compiled.collectives if c.nbytes in (head, head // of.num_chips)]
    assert [(c.kind, c.times) for c in moved] == [("all-gather", 1)]
