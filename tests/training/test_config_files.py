"""Configuration files and command-line overrides."""

import dataclasses
from pathlib import Path

import pytest

from flexdraft_jax.training.config import OptimizerConfig, TrainDraftConfig, TrainTargetConfig
from flexdraft_jax.training.config_files import apply_overrides, load_config

_CONFIGS = Path(__file__).parents[2] / "configs"


def _kind(name: str) -> type:
    return TrainTargetConfig if "target" in name else TrainDraftConfig


@pytest.mark.parametrize("path", sorted(_CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    assert dataclasses.is_dataclass(load_config(path, _kind(path.stem)))


def test_overrides_replace_nested_fields_in_order() -> None:
    config = load_config(
        _CONFIGS / "tiny_target.py",
        TrainTargetConfig,
        ["train.learning_rate=3e-4", "seed=1", "seed=7", "model.tie_word_embeddings=false"],
    )
    assert config.train.learning_rate == 3e-4
    assert config.seed == 7
    assert config.model.tie_word_embeddings is False
    assert config.train.steps == 20  # What was not named stays.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "unknown config field 'train.learning_rat'; nearest: learning_r"),
        ("trian.steps=1", "unknown config field 'trian.steps'; nearest: train"),
        ("train=1", "'train' is a group; set one of: steps"),
        ("train.steps.more=1", "'steps' has no parts"),
        ("train.steps", "has no '='"),
        ("train.steps=1.5", "train.steps='1.5': must be an integer"),
        ("train.learning_rate=fast", "train.learning_rate='fast': must be a number"),
        ("train.schedule=linear", "must be one of 'cosine', 'wsd'"),
        ("model.tie_word_embeddings=perhaps", "must be true or false"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(override: str, message: str) -> None:
    config = load_config(_CONFIGS / "tiny_target.py", TrainTargetConfig)
    with pytest.raises(ValueError) as error:
        apply_overrides(config, [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "no such Python file"),
        ("x = 1", "defines no get_config"),
        ("def get_config(): return 3", "returned int, this command needs TrainTargetConfig"),
        ("def get_config(:", "SyntaxError: "),
        ("def get_config(): return 1 / 0", "config.py': ZeroDivisionError: division by zero"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, source: str | None, message: str) -> None:
    path = tmp_path / "config.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ValueError, match=message):
        load_config(path, TrainTargetConfig)
    with pytest.raises(ValueError, match="README.md.: no such Python file"):
        load_config(_CONFIGS.parent / "README.md", TrainTargetConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("train.learning_rate=nan", "train.learning_rate=nan: must be at least 0"),
        ("train.decay_fraction=1.5", "train.decay_fraction=1.5: must be between 0 and 1"),
        ("train.learning_rate=inf", "train.learning_rate=inf: must be finite"),
        ("objective.gamma=0", "objective.gamma=0.0: must be at least 0.001"),
        ("train.steps=99999999999", "train.steps=99999999999: must be at most 2147483647"),
        ("seed=-1", "^seed=-1: must be at least 0"),
        ("loop.log_every=0", "loop.log_every=0: must be at least 1"),
        ("eval.prompts_per_domain=0", "eval.prompts_per_domain=0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(_CONFIGS / "tiny_draft.py", TrainDraftConfig, [override])


def test_a_file_with_a_field_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from flexdraft_jax.training.config import TargetModelConfig\n"
        "def get_config():\n    return TargetModelConfig(num_layer=2)\n"
    )
    with pytest.raises(ValueError, match="mine.py.*num_layer"):
        load_config(path, TrainDraftConfig)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 9.5, "train.steps=9.5: must be an integer"),
        ("learning_rate", None, "train.learning_rate=None: must be a number"),
        ("schedule", "linear", "train.schedule='linear': must be one of 'cosine', 'wsd'"),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, value: object, message: str) -> None:
    fields = {"steps": 9, "batch_size": 1, "learning_rate": 1.0, field: value}
    with pytest.raises((TypeError, ValueError), match=message):
        OptimizerConfig(**fields)
