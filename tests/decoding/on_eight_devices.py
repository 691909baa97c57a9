"""Run by test_meshes.py with eight devices: meshes of all shapes decode what one device does.

Every array's place is asserted, and written down here a second time: a constraint that is silently
skipped leaves tokens as they are.
"""

import dataclasses
import re
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import flexdraft_jax as fd
from flexdraft_jax.config import TargetConfig
from flexdraft_jax.decoding.batch import Decoding, start
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.loop import run
from flexdraft_jax.decoding.memory import Work, memory_limit, plan_memory
from flexdraft_jax.decoding.requests import Request, check_requests
from flexdraft_jax.decoding.sizes import Sizes
from flexdraft_jax.models.draft import spread_draft
from flexdraft_jax.models.target import spread_target
from flexdraft_jax.parallel.mesh import make_mesh

assert jax.device_count() == 8

CONFIG = TargetConfig(
    model_type="qwen3",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    qk_norm=True,
    layer_windows=(None, 9),
    max_position_embeddings=256,
)
# data, fsdp, tensor
MESHES = [(1, 1, 8), (2, 1, 4), (4, 1, 2), (8, 1, 1), (1, 2, 4), (2, 2, 2)]


def _noisy(params, scale: float, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def target() -> fd.Target:
    target = fd.init_target(CONFIG, jax.random.key(3))
    return dataclasses.replace(target, params=_noisy(target.params, 0.15, seed=4))


@pytest.fixture(scope="module")
def draft(target) -> fd.Draft:
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=5, calibration_rank=8, rng=jax.random.key(5)
    )
    return dataclasses.replace(draft, params=_noisy(draft.params, 0.05, seed=6))


def _marked(values, quick):
    """All values, but only one of them in a quick run."""
    return [pytest.param(x, marks=() if x == quick else pytest.mark.slow) for x in values]


@pytest.fixture(
    scope="module",
    params=_marked(MESHES, MESHES[1]),
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def mesh(request) -> jax.sharding.Mesh:
    return make_mesh(*request.param)


def _spread(
    target: fd.Target, draft: fd.Draft, mesh: jax.sharding.Mesh
) -> tuple[fd.Target, fd.Draft]:
    target = spread_target(target, mesh)
    return target, spread_draft(draft, target)


@pytest.fixture(scope="module")
def spread(target, draft, mesh) -> tuple[fd.Target, fd.Draft]:
    return _spread(target, draft, mesh)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Twenty of ragged lengths, some random, some greedy."""
    rng = np.random.default_rng(0)
    return [
        Request(
            prompt=tuple(rng.integers(0, 64, size=[1, 5, 40, 16][i % 4]).tolist()),
            max_new_tokens=int(rng.choice([0, 1, 5, 20])),
            confidence_threshold=[0.3, 0.0][i % 2],
            stop_token_ids=tuple(rng.integers(0, 64, size=i % 3).tolist()),
            temperature=[0.0, 0.8, 1.5][i % 3],
            top_k=[0, 9][i % 2],
            seed=i % 5,
            row_id=i,
        )
        for i in range(20)
    ]


@pytest.fixture(scope="module")
def alone(target, requests) -> list[list[int]]:
    """The tokens of each, by plain decoding on one device."""
    decoding = start(target, None, requests, "ar", sizes=Sizes(prompt=16, slots=256, max_slots=256))
    decoding.advance()
    return decoding.output().tokens


@pytest.fixture
def watched(monkeypatch) -> list[str]:
    """Asserts the place of every array of the state after each call; lists the calls."""
    calls: list[str] = []
    for name in ("read", "admit", "run", "resize"):
        inner = getattr(Decoding, name)

        def call(self, *args, name=name, inner=inner, **kwargs):
            result = inner(self, *args, **kwargs)
            if self.program.mesh is not None:
                assert_places(self)
                calls.append(name)
            return result

        monkeypatch.setattr(Decoding, name, call)
    return calls


def assert_places(decoding: Decoding) -> None:
    """Rows over data and fsdp; heads of the cache over tensor, where they divide; no more."""
    mesh = decoding.program.mesh
    heads = "tensor" if CONFIG.num_kv_heads % mesh.shape["tensor"] == 0 else None
    cache = jax.tree.leaves(decoding.state.cache)
    for array in cache:
        assert_place(array, mesh, ("data", "fsdp"), heads)
    for array in jax.tree.leaves(dataclasses.replace(decoding.state, cache=())):
        if array.size:  # Nothing lies nowhere, as drafts of plain decoding do.
            assert_place(array, mesh, ("data", "fsdp"))


def assert_place(array, mesh, *spec) -> None:
    expected = NamedSharding(mesh, PartitionSpec(*spec))
    assert array.sharding.is_equivalent_to(expected, array.ndim), (array.sharding, expected)


def test_every_weight_lies_where_the_table_says(spread, mesh, assert_weight_places):
    for model in spread:
        assert_weight_places(model.params, mesh, CONFIG.num_kv_heads)


def test_refilled_rows_of_all_kinds_of_steps(spread, requests, alone, mesh, watched, turns):
    engine = DecodeEngine(*spread, batch_size=8, prompt_chunk=16, mesh=mesh)
    answers = {answer.index: answer for answer in engine.run(requests)}
    assert [answers[index].tokens for index in range(len(requests))] == alone
    assert {0, 3, 4} <= {v for answer in answers.values() for v in answer.verify_lengths}
    assert {"admit", "read", "run"} == set(watched)


@pytest.mark.parametrize(
    "schedule", _marked(["ar", "parallel", "sequential", "flex"], "sequential")
)
def test_rows_that_do_not_divide(target, draft, prompts, schedule, watched):
    """Five on eight devices, and a cache that has to grow."""
    mesh = make_mesh(2, 2, 2)
    there = _spread(target, draft, mesh)
    requests = check_requests(
        CONFIG, prompts[:5], [20, 0, 20, 7, 20], 0.3, None, temperature=[0, 0.8, 0.8, 0, 0.8]
    )
    outputs = []
    for models in ((target, draft), there):
        decoding = start(*models, requests, schedule, sizes=Sizes(16, 24, 128))
        decoding.advance()
        out = decoding.output()
        # Flex chooses by the rows of a device, and so takes other steps.
        outputs.append((out.tokens, out.finish_reasons) if schedule == "flex" else out)
    assert outputs[0] == outputs[1]
    assert {"read", "run", "resize"} == set(watched)


@pytest.mark.slow
def test_what_only_some_families_have(prompts, every_feature):
    config = dataclasses.replace(CONFIG, **every_feature)
    target = fd.init_target(config, jax.random.key(3))
    target = dataclasses.replace(target, params=_noisy(target.params, 0.15, seed=4))
    draft = fd.init_draft(
        target, num_draft_layers=1, block_size=5, calibration_rank=8, rng=jax.random.key(5)
    )
    mesh = make_mesh(2, 2, 2)
    there = _spread(target, draft, mesh)
    requests = check_requests(config, prompts, 12, 0.3, None)
    tokens = []
    for models in ((target, draft), there):
        decoding = start(*models, requests, "parallel", sizes=Sizes(16, 64, 64))
        decoding.advance()
        tokens.append(decoding.output().tokens)
    assert tokens[0] == tokens[1]


def test_attention_by_the_kernel(target, draft, prompts):
    """Rows and heads are spread: the kernel sees a part of both."""
    mesh = make_mesh(2, 2, 2)
    there = _spread(target, draft, mesh)
    requests = check_requests(CONFIG, prompts, 12, 0.3, None)
    outputs = []
    for models, attention in [((target, draft), "reference"), (there, "pallas")]:
        sizes = Sizes(16, 64, 64)
        decoding = start(*models, requests, "sequential", sizes=sizes, attention=attention)
        decoding.advance()
        outputs.append(decoding.output())
    assert outputs[0] == outputs[1]


def test_the_loop_moves_no_cache_and_two_sums_a_layer():
    config = dataclasses.replace(CONFIG, num_kv_heads=4, layer_windows=(None, None))
    mesh = make_mesh(data=2, tensor=4)
    target = fd.init_target(config, jax.random.key(0), mesh=mesh)
    decoding = start(target, None, [Request((1, 2, 3), 20)] * 8, "ar", sizes=Sizes(8, 128, 128))
    compiled = run.lower(*decoding._running(decoding.state, 1, 1)).compile()
    own = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(decoding.state.cache))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= own > memory.temp_size_in_bytes
    work = Work(block_size=1, num_groups=1, chunk=8, draws=False)
    plan = plan_memory(target, None, work, 8, 128)
    assert plan.cache == own
    assert plan.weights == sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(target.params)
    )
    assert memory_limit(target) <= memory_limit(fd.init_target(config, jax.random.key(0))) // 8
    pattern = r" = (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("
    found = Counter(re.findall(pattern, compiled.as_text()))
    # Of four rows: two sums a layer and the embedding; then the largest logit and its place.
    assert found.pop(("f32[4,1,32]{2,1,0}", "all-reduce")) == 2 * config.num_layers + 1
    assert all(kind == "all-reduce" for _, kind in found), found
    assert all(re.match(r"\w+\[(4,1)?\]", shape) for shape, _ in found), found


def test_what_does_not_fit_is_refused(target, draft, prompts):
    mesh, other = make_mesh(data=2, tensor=4), make_mesh(data=8)
    there = spread_target(target, mesh)
    spread = spread_draft(draft, there)
    with pytest.raises(
        ValueError,
        match="mesh=data=8 of devices 0 to 7: the target's weights lie on data=2,tensor=4 of dev",
    ):
        fd.generate(there, spread, prompts, mesh=other)
    with pytest.raises(ValueError, match="mesh=data=8 .* lie on no mesh; load them"):
        fd.DecodeEngine(target, draft, mesh=other)
    with pytest.raises(ValueError, match="draft's weights lie on no mesh, the target's on data=2"):
        fd.generate(there, draft, prompts)
    with pytest.raises(ValueError, match="batch_size=3: batch of 3 does not divide into data=2"):
        fd.DecodeEngine(there, spread, batch_size=3)
    odd = dataclasses.replace(CONFIG, vocab_size=61)
    with pytest.raises(ValueError, match="embed/embedding: vocab of 61 .* tensor=4 parts; lm_head"):
        fd.init_target(odd, jax.random.key(0), mesh=mesh)
