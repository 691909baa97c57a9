"""A step in parts equals the step in one piece, and is smaller."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexdraft_jax.config import DraftConfig
from flexdraft_jax.models.draft import Draft, draft_shapes
from flexdraft_jax.models.flexdraft import FlexDraft
from flexdraft_jax.models.target import Params, Target, target_shapes
from flexdraft_jax.training.anchors import Groups, sample_groups
from flexdraft_jax.training.config import DraftStepConfig, ObjectiveConfig
from flexdraft_jax.training.draft_step import (
    clean_pass,
    draft_hidden,
    loss_and_gradients,
    score_groups,
)
from flexdraft_jax.training.objectives import SlotScores
from flexdraft_jax.training.rows import Rows

_ANCHORS = 8
_WHOLE = DraftStepConfig()

_Gradients = Callable[[Params, Params, Rows, Groups], tuple[Params, SlotScores]]


@pytest.fixture(scope="module")
def groups(step_rows: Rows) -> Groups:
    return sample_groups(jax.random.key(3), step_rows, num_anchors=_ANCHORS, block_size=4)


def _model(target: Target, draft: Draft) -> FlexDraft:
    return FlexDraft(target.config, draft.config)


def _gradients(model: FlexDraft, config: DraftStepConfig) -> _Gradients:
    return functools.partial(loss_and_gradients, model, ObjectiveConfig(), config)


@pytest.fixture(scope="module")
def whole(
    step_target: Target, step_draft: Draft, step_rows: Rows, groups: Groups
) -> tuple[Params, SlotScores]:
    """Plainly: one differentiated function of all rows and all groups."""
    model = _model(step_target, step_draft)
    count = np.sum(groups.counted[:, :, 1:])

    @functools.partial(jax.grad, has_aux=True)
    def gradients(params: Params) -> tuple[jax.Array, SlotScores]:
        both = {"target": step_target.params, "draft": params}
        clean = clean_pass(model, both, step_rows)
        scores = score_groups(model, ObjectiveConfig(), both, clean, step_rows, groups)
        return jnp.sum(scores.losses) / count, scores

    return jax.jit(gradients)(step_draft.params)


@pytest.mark.parametrize(
    "config",
    [
        DraftStepConfig(chunk=2),
        DraftStepConfig(microbatches=2, chunk=4, remat=True),
    ],
    ids=["chunks", "microbatches, chunks and remat"],
)
def test_parts_add_up_to_the_whole(
    config: DraftStepConfig,
    whole: tuple[Params, SlotScores],
    step_target: Target,
    step_draft: Draft,
    step_rows: Rows,
    groups: Groups,
) -> None:
    found = jax.jit(_gradients(_model(step_target, step_draft), config))(
        step_target.params, step_draft.params, step_rows, groups
    )
    np.testing.assert_array_equal(found[1].right, whole[1].right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, whole)


def test_chunks_take_less_memory(step_target: Target) -> None:
    """With a vocabulary that dwarfs the model, as it does in practice."""
    config = dataclasses.replace(step_target.config, vocab_size=8192)
    model = FlexDraft(config, DraftConfig(num_draft_layers=1, block_size=4, calibration_rank=8))

    def temporary_bytes(step: DraftStepConfig) -> int:
        compiled = jax.jit(_gradients(model, step)).lower(*_shapes(model, anchors=32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes(_WHOLE)
    assert whole > 2 * 32 * 3 * 8192 * 4, "the logits of all groups"
    assert temporary_bytes(DraftStepConfig(chunk=2)) < whole / 6


def test_remat_keeps_less_for_the_gradient(step_target: Target) -> None:
    """By what the forward pass leaves for the backward pass; one compiler may undo it."""
    config = dataclasses.replace(step_target.config, num_layers=2, layer_windows=())
    model = FlexDraft(config, DraftConfig(num_draft_layers=2, block_size=4, calibration_rank=8))
    shapes = _shapes(model, anchors=32)

    def kept_bytes(remat: bool) -> int:
        def backward(target: Params, draft: Params, rows: Rows, groups: Groups) -> Any:
            clean = clean_pass(model, {"target": target}, rows)

            def slots(draft: Params) -> jax.Array:
                both = {"target": target, "draft": draft}
                return draft_hidden(model, both, clean, rows, groups, remat)

            return jax.vjp(slots, draft)[1]

        kept = jax.tree.leaves(jax.eval_shape(backward, *shapes))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)

    assert kept_bytes(remat=True) < kept_bytes(remat=False) / 4


def _shapes(model: FlexDraft, anchors: int) -> tuple[Any, ...]:
    """Arguments of a step over two rows of 64 tokens, as shapes."""
    assert model.draft_config is not None
    n = model.draft_config.block_size
    row, mask = jax.ShapeDtypeStruct((2, 64), jnp.int32), jax.ShapeDtypeStruct((2, 64), jnp.bool_)
    groups = Groups(
        jax.ShapeDtypeStruct((2, anchors), jnp.int32),
        jax.ShapeDtypeStruct((2, anchors, n), jnp.int32),
        jax.ShapeDtypeStruct((2, anchors, n), jnp.bool_),
    )
    draft = draft_shapes(model.config, model.draft_config)
    return target_shapes(model.config), draft, Rows(row, row, row, mask), groups


def _computed_shapes(function: Callable[..., Any], *args: Any) -> Iterator[tuple[int, ...]]:
    """Shape of everything that a function computes, however deep inside."""

    def walk(jaxpr: Any) -> Iterator[tuple[int, ...]]:
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                yield variable.aval.shape
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inner):
                    yield from walk(getattr(inner, "jaxpr", inner))

    return walk(jax.make_jaxpr(function)(*args).jaxpr)


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns")


def test_nothing_shaped_like_a_weight_of_the_target_is_computed(
    step_target: Target, step_draft: Draft
) -> None:
    """A gradient would be: the frozen MLPs, head and table have shapes that nothing else has."""
    model = _model(step_target, step_draft)
    frozen = {(24, 40), (40, 24), (300, 24)}
    assert frozen <= {leaf.shape for leaf in jax.tree.leaves(step_target.params)}
    gradients = _gradients(model, DraftStepConfig(chunk=2, remat=True))
    target, draft, rows, groups = _shapes(model, _ANCHORS)
    assert not frozen & set(_computed_shapes(gradients, target, draft, rows, groups))

    def wrong(target: Params, draft: Params) -> tuple[jax.Array, SlotScores]:
        both = {"target": target, "draft": draft}
        clean = clean_pass(model, both, rows_)
        scores = score_groups(model, ObjectiveConfig(), both, clean, rows_, groups_)
        return jnp.sum(scores.losses), scores

    rows_, groups_ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (rows, groups))
    assert frozen <= set(_computed_shapes(jax.grad(wrong, has_aux=True), target, draft))


def test_logits_of_all_groups_never_exist_at_once(step_target: Target, step_draft: Draft) -> None:
    model = _model(step_target, step_draft)

    def largest(config: DraftStepConfig) -> int:
        shapes = _computed_shapes(_gradients(model, config), *_shapes(model, _ANCHORS))
        return max(int(np.prod(shape)) for shape in shapes if shape[-1:] == (300,))

    assert largest(_WHOLE) == 2 * _ANCHORS * 3 * 300
    assert largest(DraftStepConfig(chunk=2)) == 2 * 2 * 3 * 300


def test_nothing_is_kept_of_the_layers_below_the_split(
    step_target: Target, step_draft: Draft
) -> None:
    model = _model(step_target, step_draft)
    target, _, rows, _ = _shapes(model, _ANCHORS)
    clean = jax.eval_shape(lambda t, r: clean_pass(model, {"target": t}, r), target, rows)
    kept = sum(leaf.size for leaf in jax.tree.leaves(clean))
    assert kept == 2 * 64 * (24 + 1 * 2 * 16)  # hidden states; one draft layer's keys and values
