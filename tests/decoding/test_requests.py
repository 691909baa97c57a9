"""Bad input raises before anything is compiled, naming the field and the value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding import loop
from flexdraft_jax.decoding.requests import check_requests, check_settings


@pytest.fixture(autouse=True)
def nothing_is_compiled():
    before = loop.run._cache_size(), loop.read_prompt_chunk._cache_size()
    yield
    assert (loop.run._cache_size(), loop.read_prompt_chunk._cache_size()) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": []}, r"prompts=\[\]"),
        ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
        ({"prompts": [[1], [2, 61]]}, r"prompts\[1\]\[1\]=61.*between 0 and 60"),
        ({"prompts": [[-1]]}, r"prompts\[0\]\[0\]=-1.*between 0 and 60"),
        ({"max_new_tokens": -1}, r"max_new_tokens=-1.*0 or more"),
        ({"max_new_tokens": [1, 2]}, r"max_new_tokens has 2 entries.*1 prompts"),
        ({"max_new_tokens": 255}, r"prompts\[0\] has 2 tokens.*max_position_embeddings=256"),
        ({"prompts": [[1] * 257]}, r"prompts\[0\] has 257 tokens"),
        ({"schedule": np.array(["ar"])}, r"schedule=array.*: must be one of ar, parallel"),
        ({"schedule": "fast"}, r"schedule='fast'.*ar, parallel, sequential"),
        ({"pruning_strategy": "none"}, r"pruning_strategy='none'.*cumulative_product"),
        ({"block_size": 1}, r"block_size=1.*at least 2"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold=1.5"),
        ({"confidence_threshold": float("nan")}, r"confidence_threshold=nan"),
        ({"stop_token_ids": [3, 61]}, r"stop_token_ids\[1\]=61"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\]=-1"),
        ({"temperature": -0.1}, r"temperature=-0.1: must be 0 or more"),
        ({"temperature": [float("inf")]}, r"temperature\[0\]=inf: must be 0 or more"),
        ({"temperature": [1.0, 1.0]}, r"temperature has 2 entries.*1 prompts"),
        ({"top_k": -1}, r"top_k=-1: must be 0 or more"),
        ({"top_k": 2**31}, r"top_k=2147483648: must be at most 2147483647"),
        ({"top_p": 0}, r"top_p=0: must be above 0 and at most 1"),
        ({"top_p": 1e-40}, r"top_p=1e-40: must be above 0"),
        ({"temperature": 10**400}, r"temperature=10+: must be 0 or more"),
        ({"temperature": 1e39}, r"temperature=1e\+39: must be 0 or more, and at most 3.403e\+38"),
        ({"temperature": np.array([-1.0])}, r"temperature\[0\]=-1.0: must be 0 or more"),
        ({"top_p": 1.1}, r"top_p=1.1: must be above 0 and at most 1"),
        ({"min_p": float("nan")}, r"min_p=nan: must be between 0 and 1"),
        ({"seed": 2**32}, r"seed=4294967296: must be at most 4294967295"),
        ({"row_ids": [-1]}, r"row_ids\[0\]=-1: must be 0 or more"),
        ({"row_ids": [1, 2]}, r"row_ids has 2 entries.*1 prompts"),
        ({"sampling": "match"}, r"sampling='match'.*coupled, rejection"),
        ({"attention": "splash"}, r"attention='splash'.*reference, pallas"),
        ({"profile": "missing.json"}, r"missing.json: not a profile of step costs.*measure_steps"),
    ],
)
def test_value_errors(target, draft, arguments, message):
    with pytest.raises(ValueError, match=message):
        fd.generate(target, draft, **{"prompts": [[1, 2]], **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompts": [[1.5]]}, r"prompts\[0\]\[0\]=1.5.*integer"),
        ({"prompts": [[True]]}, r"prompts\[0\]\[0\]=True"),
        ({"prompts": ["text"]}, r"prompts\[0\]='text'"),
        ({"prompts": [3, 4]}, r"prompts\[0\]=3.*list of token ids"),
        ({"prompts": 3}, r"prompts=3.*list of lists"),
        ({"prompts": "text"}, r"prompts='text'"),
        ({"prompts": np.array(1)}, r"prompts=array\(1\).*list of lists"),
        ({"prompts": [b"\x01"]}, r"prompts\[0\]=b'.x01'"),
        ({"prompts": [{1, 2}]}, r"prompts\[0\]=\{1, 2\}"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens=2.5.*integer"),
        ({"max_new_tokens": [2.5]}, r"max_new_tokens\[0\]=2.5"),
        ({"block_size": 4.0}, r"block_size=4.0"),
        ({"stop_token_ids": 3}, r"stop_token_ids=3.*list"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids\[0\]='a'"),
        ({"confidence_threshold": "high"}, r"confidence_threshold='high'"),
        ({"temperature": "hot"}, r"temperature='hot': must be a number"),
        ({"temperature": True}, r"temperature=True: must be a number"),
        ({"temperature": np.array(True)}, r"temperature=True: must be a number"),
        ({"temperature": np.array("hot")}, r"temperature='hot': must be a number"),
        ({"temperature": np.ones((1, 1))}, r"temperature\[0\]=array.*: must be a number"),
        ({"top_k": 1.0}, r"top_k=1.0: must be an integer"),
        ({"top_p": [None]}, r"top_p\[0\]=None: must be a number"),
        ({"seed": 0.5}, r"seed=0.5: must be an integer"),
        ({"row_ids": ["a"]}, r"row_ids\[0\]='a': must be an integer"),
        ({"profile": 3}, r"profile=3: must be a Profile, a path or None"),
        ({"mesh": 3}, r"mesh=3: must be a Mesh or None"),
    ],
)
def test_type_errors(target, draft, arguments, message):
    with pytest.raises(TypeError, match=message):
        fd.generate(target, draft, **{"prompts": [[1, 2]], **arguments})


def test_numpy_integers_are_integers(target, draft):
    (request,) = check_requests(target.config, [np.array([1, 2])], np.int64(3), 0, np.array([4]))
    assert (
        request.prompt == (1, 2) and request.max_new_tokens == 3 and request.stop_token_ids == (4,)
    )
    assert all(type(token) is int for token in request.prompt)
    (request,) = check_requests(target.config, [[1]], np.array(4), 0, None)
    assert request.max_new_tokens == 4
    block_size = check_settings(target, draft, "parallel", np.int64(3), "min_confidence")
    assert type(block_size) is int


def test_sampling_of_each_row(target):
    requests = check_requests(
        target.config,
        [[1], [2]],
        4,
        0,
        None,
        temperature=np.array([0, 0.5]),
        top_k=(3, 4),
        top_p=0.5,
        min_p=[0, 1],
        seed=np.uint32(7),
        row_ids=[5, 2**32 - 1],
    )
    drawn = [(r.temperature, r.top_k, r.top_p, r.min_p, r.seed, r.row_id) for r in requests]
    assert drawn == [(0, 3, 0.5, 0, 7, 5), (0.5, 4, 0.5, 1, 7, 2**32 - 1)]
    first, second = check_requests(target.config, [[1], [2]], 4, 0, None)
    assert (first.row_id, second.row_id) == (0, 1) and first.temperature == 0


def test_arrays_of_jax(target):
    requests = check_requests(
        target.config,
        jnp.array([[1], [2]]),
        jnp.array([3, 4]),
        jnp.array(0.5, jnp.bfloat16),
        jnp.array([5]),
        temperature=jnp.array([0, 0.5]),
        top_k=jnp.array(3),
        top_p=jnp.array(0.25),
    )
    assert [(r.temperature, r.top_k, r.top_p) for r in requests] == [(0, 3, 0.25), (0.5, 3, 0.25)]
    assert [r.max_new_tokens for r in requests] == [3, 4]
    assert [r.prompt for r in requests] == [(1,), (2,)]
    assert requests[0].confidence_threshold == 0.5 and requests[0].stop_token_ids == (5,)
    assert all(type(r.temperature) is type(r.top_p) is float for r in requests)


def test_a_missing_draft(target):
    with pytest.raises(ValueError, match='draft=None.*"ar"'):
        fd.generate(target, None, [[1]], schedule="parallel")


def test_a_draft_for_another_target(target, draft):
    config = dataclasses.replace(target.config, hidden_size=24)
    other = fd.init_target(config, jax.random.key(0))
    foreign = fd.init_draft(
        other, num_draft_layers=2, block_size=5, calibration_rank=8, rng=jax.random.key(0)
    )
    with pytest.raises(ValueError, match=r"another target.*mask_embedding is \(24,\).*\(32,\)"):
        fd.generate(target, foreign, [[1]])
    deeper = dataclasses.replace(
        draft, config=dataclasses.replace(draft.config, num_draft_layers=4)
    )
    with pytest.raises(ValueError, match=r"num_draft_layers=4.*num_layers=3"):
        fd.generate(target, deeper, [[1]])


def test_models_in_the_wrong_place(target, draft):
    with pytest.raises(TypeError, match="target is a Draft: must be a Target"):
        fd.generate(draft, target, [[1]])
    with pytest.raises(TypeError, match="draft is a str: must be a Draft or None"):
        fd.generate(target, "path/to/draft", [[1]])


def test_a_draft_of_another_dtype(target, draft):
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), draft.params)
    with pytest.raises(ValueError, match="draft's weights are bfloat16: must be float32"):
        fd.generate(target, dataclasses.replace(draft, params=half), [[1]])


def test_stream_checks_at_the_call(target, draft):
    with pytest.raises(ValueError, match=r"steps_per_update=0"):
        fd.stream(target, draft, [[1]], steps_per_update=0)
    with pytest.raises(TypeError, match=r"steps_per_update=1.5.*integer"):
        fd.stream(target, draft, [[1]], steps_per_update=1.5)
    with pytest.raises(ValueError, match=r"prompts\[0\] is empty"):
        fd.stream(target, draft, [[]])


@pytest.mark.parametrize("num_draft_layers", [0, 4])
def test_init_draft_with_too_few_or_too_many_layers(target, num_draft_layers):
    with pytest.raises(ValueError, match=f"num_draft_layers={num_draft_layers}"):
        fd.init_draft(
            target,
            num_draft_layers=num_draft_layers,
            block_size=4,
            calibration_rank=4,
            rng=jax.random.key(0),
        )
