"""Compares recipes on one data set; started again, it goes on with the run that is missing.

python train/study.py --config configs/default_draft.py --target path/to/target --data runs/data \
    --work_dir runs/study --seeds 0,1,2
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.prepared import load_prepared
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, load_models
from flexdraft_jax.training.config import TrainDraftConfig
from flexdraft_jax.training.config_files import load_config
from flexdraft_jax.training.preemption import stopping_exits
from flexdraft_jax.training.study import RECIPES, run_study, study_table

_CONFIG = flags.DEFINE_string("config", "configs/default_draft.py", "Base of every run.")
_TARGET = flags.DEFINE_string(
    "target", None, "Directory of the target; the embedded default if left out."
)
_DATA = flags.DEFINE_string("data", "runs/data", "Output of train/prepare_data.py.")
_WORK_DIR = flags.DEFINE_string("work_dir", "runs/study", "Where the runs go.")
_RECIPES = flags.DEFINE_list("recipes", list(RECIPES), "The first is compared with.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "One run of each recipe for each.")
_SET = flags.DEFINE_multi_string("set", [], "Override of the base, such as train.steps=100.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the table to this file.")


def main(argv: Sequence[str]) -> None:
    """Runs the study."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every rename.
    console = make_console()
    with bad_input_exits(), stopping_exits():
        check_outputs(_MARKDOWN.value)
        if not all(seed.isdecimal() for seed in _SEEDS.value):
            raise ValueError(f"seeds={','.join(_SEEDS.value)}: must be whole numbers")
        models = load_models(_TARGET.value)
        results = run_study(
            load_config(_CONFIG.value, TrainDraftConfig, _SET.value),
            _RECIPES.value,
            [int(seed) for seed in _SEEDS.value],
            models.target,
            models.tokenizer,
            load_prepared(_DATA.value),
            pathlib.Path(_WORK_DIR.value),
            console.print,
        )
    table = study_table(results)
    console.print(table.to_rich())
    if _MARKDOWN.value:
        pathlib.Path(_MARKDOWN.value).write_text(table.to_markdown())


if __name__ == "__main__":
    app.run(main)
