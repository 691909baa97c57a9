"""Run by test_meshes.py with eight devices: meshes of all shapes train as one device does."""

import dataclasses

import jax
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.models.draft import draft_shardings
from flexdraft_jax.models.target import spread_target
from flexdraft_jax.parallel.mesh import make_mesh
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.distributed import global_rows, place_state
from flexdraft_jax.training.draft_step import make_draft_step
from flexdraft_jax.training.optimizer import TrainState, first_state, make_optimizer
from flexdraft_jax.training.rows import Rows

assert jax.device_count() == 8

CONFIG = fd.TargetConfig(
    model_type="qwen3",
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
    layer_windows=(None, None),
)
BATCH, LENGTH, STEPS = 8, 48, 3


@pytest.fixture(scope="module")
def config(draft_config) -> TrainDraftConfig:
    train = dataclasses.replace(draft_config.train, batch_size=BATCH, warmup_fraction=0.0)
    return dataclasses.replace(draft_config, train=train)


@pytest.fixture(scope="module")
def models(config) -> tuple[fd.Target, fd.Draft]:
    target = fd.init_target(CONFIG, jax.random.key(0))
    sizes = dataclasses.asdict(config.model)
    return target, fd.init_draft(target, **sizes, rng=jax.random.key(1))


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH)
    half = np.arange(LENGTH) % (LENGTH // 2)  # Two documents a row.
    return {
        "tokens": rng.integers(0, CONFIG.vocab_size, shape).astype(np.int32),
        "segment_ids": np.tile(1 + np.arange(LENGTH) // (LENGTH // 2), (BATCH, 1)).astype(np.int32),
        "positions": np.tile(half, (BATCH, 1)).astype(np.int32),
        "response_mask": np.tile(half >= 4, (BATCH, 1)),
    }


@pytest.fixture(scope="module")
def on_one(config, models, rows) -> tuple[list[float], list[float]]:
    """Losses and norms of gradients of one device."""
    optimizer = make_optimizer(config.train)
    step = make_draft_step(config, models[0], optimizer)
    losses, norms = _train(step, first_state(models[1].params, optimizer), Rows(**rows))[1:]
    assert losses[0] > losses[-1]
    return losses, norms


def _train(step, state, rows) -> tuple[TrainState, list[float], list[float]]:
    losses, norms = [], []
    for _ in range(STEPS):
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    return state, losses, norms


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 8), (2, 1, 4), (4, 1, 2), (8, 1, 1), (1, 2, 4), (2, 2, 2)],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_losses_and_places(config, models, rows, on_one, sizes, assert_weight_places) -> None:
    target, draft = models
    mesh, optimizer = make_mesh(*sizes), make_optimizer(config.train)
    places = draft_shardings(CONFIG, draft.config, mesh)
    state = place_state(mesh, first_state(draft.params, optimizer), places)
    spread = spread_target(target, mesh)
    step = make_draft_step(config, spread, optimizer, jax.tree.map(lambda x: x.sharding, state))
    batch = global_rows(mesh, rows, BATCH)
    by_rows = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    assert all(x.sharding.is_equivalent_to(by_rows, 2) for x in jax.tree.leaves(batch))
    state, losses, norms = _train(step, state, batch)
    np.testing.assert_allclose(losses, on_one[0], rtol=1e-5)
    np.testing.assert_allclose(norms, on_one[1], rtol=1e-4)
    assert_weight_places(spread.params, mesh, CONFIG.num_kv_heads)
    trees = [state.params, *(x for x in _means(state.opt_state))]
    assert len(trees) == 3  # Parameters, and AdamW's two means.
    for tree in trees:
        assert_weight_places(tree, mesh, CONFIG.num_kv_heads)


def _means(opt_state) -> list:
    """The trees of an optimizer's state that have the parameters' form."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, dict))
    return [node for node in found if isinstance(node, dict)]
