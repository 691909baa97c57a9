"""Whatever comes in: the right answer, or an error of a usual kind that says what is wrong.

`tests/fuzz` does the same with every entry and for as long as one likes; see docs/robustness.md.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flexdraft_jax as fd
from flexdraft_jax.checkpoints.hf_config import target_config_from_hf, target_config_to_hf
from flexdraft_jax.data.conversations import parse_line, parse_object
from flexdraft_jax.decoding.requests import check_requests
from flexdraft_jax.evaluation.request_lines import LineSettings, read_request

TESTS = pathlib.Path(__file__).parent
# Without a limit of time: compute is shared, and none of these is slow.
MANY = settings(max_examples=300, deadline=None)

_NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, 1, -1, 2**31, 2**32, 10**400, float("nan"), float("inf"), -1e-320])
)
_TEXTS = st.text(max_size=5) | st.sampled_from(["user", "\ud800", "silu", "default", "1"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_CONFIGS = [json.loads(path.read_text()) for path in sorted(TESTS.glob("references/*/config.json"))]
_FIELDS = sorted({name for config in _CONFIGS for name in config} | {"rope_scaling", "head_dim"})


@MANY
@given(st.sampled_from(_CONFIGS), st.dictionaries(st.sampled_from(_FIELDS), ANYTHING, max_size=2))
def test_a_config_means_something_or_is_refused(config, changes):
    try:
        found = target_config_from_hf(config | changes)
    except ValueError as error:
        assert any(name in str(error) for name in config | changes)
        return
    assert target_config_from_hf(target_config_to_hf(found)) == found


_ARGUMENTS = {
    "max_new_tokens": 3,
    "confidence_threshold": 0.5,
    "stop_token_ids": [1],
    **{"temperature": 1.0, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 1, "row_ids": [0, 1]},
}


@MANY
@given(st.dictionaries(st.sampled_from([*_ARGUMENTS, "prompts"]), ANYTHING, max_size=2))
def test_arguments_are_taken_or_named(models, changes):
    arguments = {"prompts": [[1, 2], [3]], **_ARGUMENTS, **changes}
    try:
        requests = check_requests(models.target.config, **arguments)
    except (TypeError, ValueError) as error:
        assert any(name in str(error) for name in arguments)
        return
    for request in requests:
        assert request.prompt and all(0 <= token < 260 for token in request.prompt)
        assert 0 <= request.max_new_tokens and 0 <= request.temperature < 1e39
        assert 0 < request.top_p <= 1 and 0 <= request.min_p <= 1
        assert fd.Request(**vars(request)) == request


_LINE_FIELDS = (
    *("prompt", "messages", "conversations", "text", "tokens", "response_mask", "response"),
    *("token_ids", "temperature", "max_new_tokens", "seed", "domain", "id"),
)


@MANY
@given(st.dictionaries(st.sampled_from(_LINE_FIELDS), ANYTHING) | ANYTHING | st.binary())
def test_lines_are_read_or_refused(models, content):
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    for read in (
        parse_line,
        lambda line: read_request(parse_object(line), 1, models, LineSettings()),
    ):
        with contextlib.suppress(ValueError):
            read(line)


@pytest.mark.slow
def test_the_fuzzer_runs() -> None:
    """A few tries of what is cheap."""
    quick = "config.json|weights of|a draft|tokenizer|step costs|plan|reports|overrides|names"
    command = [sys.executable, str(TESTS / "fuzz"), "--tries", "4", "--only", quick]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "36 tried, 0 faults" in done.stdout
    none = subprocess.run([*command[:2], "--tries", "0"], env=os.environ, capture_output=True)
    assert none.returncode == 2 and b"must be positive" in none.stderr


@pytest.mark.slow
def test_the_fuzzer_runs_on_everything() -> None:
    command = [sys.executable, str(TESTS / "fuzz"), "--seconds", "300", "--seed", "1"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
