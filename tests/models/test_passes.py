"""The passes of `FlexDraft` against each other: each fact is computed in two ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.models.cache import Cache, commit, init_cache
from flexdraft_jax.models.draft import draft_logical_axes, draft_shapes
from flexdraft_jax.models.flexdraft import FlexDraft, flexdraft_model, flexdraft_variables
from flexdraft_jax.models.layers import Linear
from flexdraft_jax.models.target import TargetModel, target_logical_axes, target_shapes

SLOTS, LENGTH, N = 24, 10, 4


@pytest.fixture(
    scope="module",
    # A window is among the features; by itself it is a second look.
    params=["full", pytest.param("window", marks=pytest.mark.slow), "every feature"],
)
def setup(request, every_feature):
    window = None if request.param == "full" else 6
    config = fd.TargetConfig(
        model_type="qwen3",
        vocab_size=40,
        hidden_size=24,
        intermediate_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        qk_norm=True,
        layer_windows=(None, window, None if request.param == "every feature" else window),
        **(every_feature if request.param == "every feature" else {}),
    )
    target = fd.init_target(config, jax.random.key(0))
    draft = fd.init_draft(
        target, num_draft_layers=2, block_size=N, calibration_rank=8, rng=jax.random.key(1)
    )
    moved = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), draft.params
    )
    draft = dataclasses.replace(draft, params=moved)
    model, variables = flexdraft_model(target, draft), flexdraft_variables(target, draft)
    tokens = jax.random.randint(jax.random.key(2), (2, SLOTS), 0, config.vocab_size)

    return config, variables, tokens, jitted(model)


def jitted(model: FlexDraft):
    """`apply(variables, method, *args)`; integers among the arguments are static."""

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def compiled(variables, method, static, *arrays):
        arguments = iter(arrays)
        filled_in = [next(arguments) if x is None else x for x in static]
        return model.apply(variables, *filled_in, method=method)

    def apply(variables, method, *args):
        static = tuple(x if isinstance(x, int) else None for x in args)
        return compiled(variables, method, static, *(x for x in args if not isinstance(x, int)))

    return apply


def filled(setup) -> Cache:
    """A cache that holds each row's first tokens, and rubbish behind them."""
    config, variables, tokens, apply = setup
    cache = init_cache(config, 2, SLOTS, jnp.float32)
    zero = jnp.zeros(2, jnp.int32)
    clean = apply(variables, "clean_pass", tokens, zero, cache)
    return commit(cache, clean.fresh, zero, jnp.array([True, True]))


def test_clean_pass_in_chunks_equals_the_whole_sequence(setup):
    config, variables, tokens, apply = setup
    target_params = variables["params"]["target"]
    whole = jax.jit(TargetModel(config).apply)({"params": target_params}, tokens)
    lengths = jnp.array([LENGTH, LENGTH - 3])
    chunk = jnp.stack([row[k : k + 5] for row, k in zip(tokens, lengths, strict=True)])
    clean = apply(variables, "clean_pass", chunk, lengths, filled(setup))
    logits = apply(variables, "target_logits", clean.hidden)
    for row, k in enumerate(lengths):
        np.testing.assert_allclose(logits[row], whole[row, k : k + 5], atol=2e-5)


def test_parallel_pass_equals_verify_then_draft(setup):
    """Group k of a parallel pass is the draft pass behind a cache with candidates 0..k in it."""
    _, variables, tokens, apply = setup
    lengths = jnp.array([LENGTH, LENGTH - 3])
    cache = filled(setup)
    chunk = jnp.stack([row[k : k + N] for row, k in zip(tokens, lengths, strict=True)])
    both = apply(variables, "parallel_pass", chunk, lengths, N, N, cache)
    clean = apply(variables, "clean_pass", chunk, lengths, cache)
    np.testing.assert_allclose(both.clean.hidden, clean.hidden, atol=2e-5)
    for k in range(N):
        # The cache already holds these very tokens further on.
        alone = apply(variables, "draft_pass", lengths + k + 1, N, cache)
        np.testing.assert_allclose(both.groups[:, k], alone, atol=2e-5)


def test_training_groups_equal_decoding_groups(setup):
    """What training differentiates is what decoding runs: packed rows, masks and positions."""
    _, variables, tokens, apply = setup
    first, second = 9, 12  # two documents of row 0 side by side in one packed row
    row = jnp.concatenate([tokens[0, :first], tokens[1, :second]])[None]
    segments = jnp.array([[1] * first + [2] * second])
    positions = jnp.concatenate([jnp.arange(first), jnp.arange(second)])[None]
    anchors = jnp.array([[2, first - 1, first, first + 6]])
    clean = apply(variables, "packed_clean_pass", row, positions, segments)
    packed = apply(variables, "packed_draft_pass", clean, positions, segments, anchors, N)
    cache = filled(setup)
    for index, (document, anchor) in enumerate([(0, 2), (0, first - 1), (1, 0), (1, 6)]):
        lengths = jnp.full(2, anchor + 1)
        alone = apply(variables, "draft_pass", lengths, N, cache)
        np.testing.assert_allclose(packed[0, index], alone[document], atol=2e-5)


def test_clean_tokens_see_no_later_token_and_no_mask(setup):
    """By gradient: a candidate's output does not move with anything behind it."""
    config, variables, tokens, apply = setup
    lengths = jnp.array([LENGTH, LENGTH])
    cache = filled(setup)
    table = variables["params"]["target"]["embed"]["embedding"]
    chunk = jnp.array([[1, 2, 3, 4]] * 2)

    def output(table, mask_embedding):
        target = {**variables["params"]["target"], "embed": {"embedding": table}}
        draft = {**variables["params"]["draft"], "mask_embedding": mask_embedding}
        weights = {"params": {"target": target, "draft": draft}}
        both = apply(weights, "parallel_pass", chunk, lengths, N, N, cache)
        return both.clean.hidden[0, 1].sum()

    by_table, by_mask = jax.grad(output, argnums=(0, 1))(
        table, variables["params"]["draft"]["mask_embedding"]
    )
    assert jnp.any(by_table[1] != 0) and jnp.any(by_table[2] != 0)
    assert jnp.all(by_table[3:5] == 0)
    assert jnp.all(by_mask == 0)


def test_rubbish_behind_the_length_does_not_matter(setup):
    _, variables, tokens, apply = setup
    lengths = jnp.array([LENGTH, LENGTH - 3])
    cache = filled(setup)
    behind = jnp.arange(SLOTS) >= lengths[:, None]
    spoiled = jax.tree.map(lambda x: jnp.where(behind[:, None, :, None], 1e6, x), cache)
    for method, args in [("clean_pass", (tokens[:, :3], lengths)), ("draft_pass", (lengths, N))]:
        good = apply(variables, method, *args, cache)
        same = apply(variables, method, *args, spoiled)
        good, same = (x.hidden if method == "clean_pass" else x for x in (good, same))
        np.testing.assert_array_equal(good, same)


def test_an_untrained_draft_starts_from_the_targets_projections(setup):
    config, variables, _, _ = setup
    target = fd.Target(config, variables["params"]["target"])
    draft = fd.init_draft(
        target, num_draft_layers=3, block_size=2, calibration_rank=4, rng=jax.random.key(0)
    )
    for layer in range(3):
        jax.tree.map(
            np.testing.assert_array_equal,
            draft.params[f"layers_{layer}"],
            target.params[f"layers_{layer}"]["attention"],
        )
    assert not any(x.any() for x in jax.tree.leaves(draft.params["calibration"]["output"]))


def test_bfloat16_hidden_states_and_float32_logits(setup):
    config, variables, tokens, _ = setup
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
    model = flexdraft_model(fd.Target(config, params["target"]), None)
    cache = init_cache(config, 2, SLOTS, jnp.bfloat16)
    half = {"params": {"target": params["target"]}}
    apply = jitted(model)
    clean = apply(half, "clean_pass", tokens, jnp.zeros(2, jnp.int32), cache)
    assert clean.hidden.dtype == clean.fresh[0].keys.dtype == jnp.bfloat16
    assert apply(half, "target_logits", clean.hidden).dtype == jnp.float32


def test_a_weight_on_an_unknown_axis():
    layer = Linear(3, ("embed", "hedas"))
    with pytest.raises(ValueError, match=r"axes=\['hedas'\]"):
        layer.init(jax.random.key(0), jnp.zeros((1, 2)))


def test_every_weight_declares_its_axes(setup):
    config, *_ = setup
    draft_config = fd.DraftConfig(2, N, 8)
    for shapes, axes in [
        (target_shapes(config), target_logical_axes(config)),
        (draft_shapes(config, draft_config), draft_logical_axes(config, draft_config)),
    ]:
        ranks = jax.tree.map(lambda x: x.ndim, shapes)
        named = jax.tree.map(len, axes, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
        assert ranks == named
