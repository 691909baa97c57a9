"""The study: its table, its pairing, and that finished runs are not repeated."""

from pathlib import Path

import numpy as np
import pytest

from flexdraft_jax.training import study
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import apply_overrides
from flexdraft_jax.training.study import RECIPES, paired_gain, run_study, study_table


def test_pairing_sees_a_gain_that_prompts_hide() -> None:
    rng = np.random.default_rng(0)
    reference = {"a": rng.uniform(1, 8, 40), "b": rng.uniform(1, 8, 40)}
    better = {domain: 1.1 * tau for domain, tau in reference.items()}
    gain, low, high = paired_gain(better, reference)
    assert gain == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    noise = {domain: tau + rng.normal(0, 1, 40) for domain, tau in reference.items()}
    _, low, high = paired_gain(noise, reference)
    assert low < 0 < high


def test_every_recipe_is_a_configuration(draft_config: TrainDraftConfig) -> None:
    configs = [apply_overrides(draft_config, RECIPES[name]) for name in RECIPES]
    assert len(set(map(repr, configs))) == len(RECIPES)
    assert all(any(vars(config.objective.terms).values()) for config in configs)


def test_runs_are_made_once_and_compared(
    draft_config, models, tokenizer, prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def train(config, *arguments):
        calls.append((config.objective.slot_weights, config.seed))
        (arguments[-1] / "checkpoints" / "6").mkdir(parents=True)
        return models.draft

    monkeypatch.setattr(study, "train_draft", train)
    names, said = ["forward_kl", "running_kl"], []

    def go(max_new_tokens: int = 8):
        config = apply_overrides(draft_config, [f"eval.max_new_tokens={max_new_tokens}"])
        fixed = (models.target, tokenizer, prepared, tmp_path)
        return run_study(config, names, [0, 5], *fixed, said.append)

    first = go()
    assert calls == [(w, s) for s in (0, 5) for w in ("exponential", "running_acceptance")]
    assert said[0] == "forward_kl, seed 0"
    assert go() == first and len(calls) == 4
    with pytest.raises(ValueError, match="holds a run with another configuration: .*eval"):
        go(max_new_tokens=9)
    assert [row[0] for row in study_table(first).rows] == ["forward kl", "running kl"]


def test_gains_are_over_the_first_recipe() -> None:
    own, better = ([{"code": {"tau": [tau, tau], "distinct": 1.0}}] for tau in (2.0, 3.0))
    (reference, row) = study_table({"own": own, "better": better}).rows
    assert reference == ("own", "2.00 (2.00-2.00)", "100 %", "-")
    assert row[-1] == "+50.0% (+50.0% to +50.0%)"


def test_an_unknown_recipe_is_refused(draft_config, models, tokenizer, prepared, tmp_path) -> None:
    fixed = (models.target, tokenizer, prepared, tmp_path, print)
    with pytest.raises(ValueError, match="recipes=.'best'.*must name .* among published"):
        run_study(draft_config, ["best"], [0], *fixed)
