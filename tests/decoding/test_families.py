"""Every family decodes to what Hugging Face `generate` wrote, greedily, for the same weights."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

import flexdraft_jax as fd
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import check_requests
from flexdraft_jax.decoding.sizes import Sizes

REFERENCES = Path(__file__).parents[1] / "references"
PROMPT_LENGTH = 8  # as in make_references.py
FAMILIES = sorted(path.parent.name for path in REFERENCES.glob("*/config.json"))


# A parallel pass has all that a family does otherwise in it.
_SLOW = {("gemma3_text-window", "ar"), ("phi3-window", "ar")}
_CASES = [
    pytest.param(*case, marks=pytest.mark.slow if case in _SLOW or case[1] == "sequential" else ())
    for case in itertools.product(FAMILIES, ("ar", "parallel", "sequential"))
]


@pytest.mark.parametrize(("family", "schedule"), _CASES)
def test_equals_hugging_face(family, schedule):
    target = fd.load_target(REFERENCES / family)
    draft = fd.init_draft(
        target, num_draft_layers=2, block_size=4, calibration_rank=8, rng=jax.random.key(0)
    )
    expected = np.load(REFERENCES / family / "expected.npz")
    prompts = expected["tokens"][:, :PROMPT_LENGTH].tolist()
    new_ids = expected["new_ids"].tolist()
    sizes = Sizes(prompt=16, slots=64, max_slots=64)
    requests = check_requests(target.config, prompts, len(new_ids[0]), 0.0, None)
    decoding = start(target, draft, requests, schedule, sizes=sizes)
    decoding.advance(1_000)
    assert decoding.output().tokens == new_ids
