"""Speed of the schedules beside plain decoding, as ratios in one run.

    python infer/benchmark.py --json bench.json --markdown bench.md
    python infer/benchmark.py --random_target 10m --batch_sizes 1 --max_new_tokens 64
    python infer/benchmark.py --random_target 100m --batch_sizes 1,2,4,8,16,32 \\
        --forced_acceptance 0.8 --plot throughput.png
    python infer/benchmark.py --target path/to/target --draft path/to/draft --dtype bfloat16 \\
        --parts decoding --tasks gsm8k,math500,humaneval,mbpp,mt_bench --tasks_dir path/to/tasks \\
        --temperatures 0,1 --plot_acceptance acceptance.png --plot_tau tau.png
    python infer/benchmark.py --compare before.json after.json

The first decodes held-out prompts with the embedded default. The next two need no trained model:
with random weights a step costs what its shapes cost. The fourth takes public benchmarks, from
files that are there already, the first prompts that leave room for an answer.

The last measures nothing: it shows what changed between two reports of at least four repeats, and
its exit status is 1 where ours became worse, which is for rows that are in both:
- tokens/s, the cost of a step and the time to the first token, where every repeat after is worse
  than every one before by more than a tenth;
- tau, where it is lower by more than 1 %, except for flex, which chooses its steps for speed;
- equality, where fewer prompts than before, even by one, are answered like plain decoding; parting
  from it at a near-tie counts as equal. With --forced_acceptance there is none.
Memory and compilation are not compared. Rows of one report alone are listed, and are no regression.
--markdown writes the tables.

A report is written behind the step costs and behind each batch size of whole calls.

Flex chooses by what steps cost: --measure_costs measures that at each batch size, with the smallest
and the largest cache that its calls use, and without it what infer/measure_steps.py wrote before is
taken, or estimates.

Where PyTorch is installed, Hugging Face's own decoding of the same weights is a row of the same
table; at batch 1 its prompt lookup is another, and its assisted generation with --assistant. It
decodes on the CPU in float32, and so only beside a target that does, without a mesh.
--peers=huggingface has it elsewhere, too: the whole target is then written to a temporary folder.
--peers=none leaves it out.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from flexdraft_jax.evaluation.benchmark import (
    benchmark_models,
    benchmark_random,
)
from flexdraft_jax.evaluation.benchmark_report import (
    PARTS,
    BenchmarkReport,
    BenchmarkSettings,
)
from flexdraft_jax.evaluation.compare import compare_reports, read_report
from flexdraft_jax.evaluation.highlight import make_console, progress_on
from flexdraft_jax.evaluation.loading import (
    bad_input_exits,
    check_outputs,
    check_plot,
    integers,
    load_models,
    numbers,
)
from flexdraft_jax.evaluation.peer_methods import PEERS
from flexdraft_jax.evaluation.plots import plot_acceptance, plot_tau, plot_throughput
from flexdraft_jax.evaluation.prompt_sets import KNOWN_TASKS
from flexdraft_jax.evaluation.random_targets import RANDOM_TARGETS
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.parallel.mesh import parse_mesh

_DEFAULT = BenchmarkSettings()

_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Spread the weights over devices, as in data=2,tensor=4; one device if left out."
)
_RANDOM_TARGET = flags.DEFINE_enum(
    "random_target",
    None,
    list(RANDOM_TARGETS),
    "Measure a target of this size with random weights.",
)
flags.mark_flags_as_mutual_exclusive(["random_target", "target"])
flags.mark_flags_as_mutual_exclusive(["random_target", "draft"])
_SCHEDULES = flags.DEFINE_list(
    "schedules", list(_DEFAULT.schedules), "Beside ar, which is always measured."
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", [str(b) for b in _DEFAULT.batch_sizes], "Rows decoded together."
)
_BLOCK_SIZES = flags.DEFINE_list(
    "block_sizes",
    [str(n) for n in _DEFAULT.block_sizes],
    "Block sizes to measure the cost of a step at; decoding takes the first.",
)
_CONFIDENCE_THRESHOLD = flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)
_NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts",
    None,
    f"Prompts of each kind, {_DEFAULT.num_prompts} if left out, which larger batches repeat; of a "
    "random target one batch.",
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens."
)
_FORCED_ACCEPTANCE = flags.DEFINE_float(
    "forced_acceptance",
    None,
    "Accept each draft of a random target with this probability, to time the schedules.",
)
_MEASURE_COSTS = flags.DEFINE_boolean(
    "measure_costs",
    _DEFAULT.measure_costs,
    "Before each batch size, measure what flex chooses by, instead of looking for a profile.",
)
_PARTS = flags.DEFINE_list(
    "parts", list(PARTS), "What to measure: the cost of single steps, decoding in whole calls."
)
_TASKS = flags.DEFINE_list(
    "tasks",
    None,
    f"Prompts of these: {', '.join(KNOWN_TASKS)}; what is not on this machine is skipped. The "
    "embedded domains if left out.",
)
flags.mark_flags_as_mutual_exclusive(["random_target", "tasks"])
_TASKS_DIR = flags.DEFINE_string(
    "tasks_dir", None, "Directory of NAME.jsonl, NAME.parquet or folders NAME of such files."
)
_TEMPERATURES = flags.DEFINE_list("temperatures", ["0"], "Of whole calls; 0 is greedy.")
_PEERS = flags.DEFINE_enum(
    "peers",
    _DEFAULT.peers,
    list(PEERS),
    "Other implementations beside ours; auto: huggingface on a CPU in float32, where PyTorch is.",
)
_ASSISTANT = flags.DEFINE_string(
    "assistant", None, "Hugging Face directory of a model that drafts in its assisted generation."
)
_REPEATS = flags.DEFINE_integer("repeats", _DEFAULT.repeats, "Of every measurement, interleaved.")
_JSON = flags.DEFINE_string("json", None, "Write everything measured to this file.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "Write the tables to this file.")
_PLOT = flags.DEFINE_string("plot", None, "Draw tokens/s by batch size to this file.")
_PLOT_ACCEPTANCE = flags.DEFINE_string(
    "plot_acceptance", None, "Draw acceptance by position to this file."
)
_PLOT_TAU = flags.DEFINE_string("plot_tau", None, "Draw tau by kind of prompts to this file.")
_COMPARE = flags.DEFINE_string(
    "compare", None, "Compare this report with the one named behind it, and measure nothing."
)


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, or compares two runs of it."""
    if _COMPARE.value is not None:
        if len(argv) != 2:
            raise app.UsageError(f"--compare needs two files, got {[_COMPARE.value, *argv[1:]]}")
        for flag in (_JSON, _PLOT, _PLOT_ACCEPTANCE, _PLOT_TAU):
            if flag.value is not None:
                raise app.UsageError(f"--{flag.name}: --compare writes tables alone, --markdown")
        compare(_COMPARE.value, argv[1])
        return
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    console = make_console()
    progress = progress_on(console)
    num_prompts = _NUM_PROMPTS.value
    if num_prompts is None:
        num_prompts = 1 if _RANDOM_TARGET.value else _DEFAULT.num_prompts
    with bad_input_exits():
        plots = [
            (_PLOT, plot_throughput),
            (_PLOT_ACCEPTANCE, plot_acceptance),
            (_PLOT_TAU, plot_tau),
        ]
        check_outputs(_JSON.value, _MARKDOWN.value, *(flag.value for flag, _ in plots))
        drafts = _FORCED_ACCEPTANCE.value is not None or not _RANDOM_TARGET.value
        for flag, _ in plots:
            check_plot(flag.value)
            if flag.value and not drafts and flag is not _PLOT:
                raise ValueError(
                    f"--{flag.name}: a random target drafts with --forced_acceptance alone"
                )
            if flag.value and "decoding" not in _PARTS.value:
                raise ValueError(f"--{flag.name}: needs decoding among --parts")
        settings = BenchmarkSettings(
            schedules=tuple(_SCHEDULES.value),
            batch_sizes=integers("batch_sizes", _BATCH_SIZES.value),
            block_sizes=integers("block_sizes", _BLOCK_SIZES.value, smallest=2),
            confidence_threshold=_CONFIDENCE_THRESHOLD.value,
            num_prompts=num_prompts,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            repeats=_REPEATS.value,
            forced_acceptance=_FORCED_ACCEPTANCE.value,
            measure_costs=_MEASURE_COSTS.value,
            parts=tuple(_PARTS.value),
            tasks=tuple(_TASKS.value or _DEFAULT.tasks),
            tasks_dir=_TASKS_DIR.value,
            temperatures=numbers("temperatures", _TEMPERATURES.value),
            peers=_PEERS.value,
        )
        mesh = None if _MESH.value is None else parse_mesh(_MESH.value).build()
        options: dict[str, Any] = {"assistant": _ASSISTANT.value, "save": keep}
        if _RANDOM_TARGET.value:
            report = benchmark_random(
                _RANDOM_TARGET.value, settings, progress, _DTYPE.value, mesh, **options
            )
        else:
            models = load_models(_TARGET.value, _DRAFT.value, dtype=_DTYPE.value, mesh=mesh)
            report = benchmark_models(models, settings, progress, **options)
    for table in report.tables():
        console.print(table.to_rich())
    with bad_input_exits():
        save(report)
        for flag, draw in plots:
            if flag.value:
                draw(report.decoding, flag.value)


def keep(report: BenchmarkReport) -> None:
    """Saves what is measured: it stays, whatever happens to the rest."""
    given = [pathlib.Path(flag.value) for flag in (_JSON, _MARKDOWN) if flag.value]
    if not any(path.exists() and not path.is_file() for path in given):  # A pipe takes it once.
        save(report)


def save(report: BenchmarkReport) -> None:
    """Writes a report to the files asked for, if any."""
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(report.to_json(), indent=2) + "\n")
    write_markdown(report.tables())


def write_markdown(tables: Sequence[Table]) -> None:
    """Writes tables to the file asked for, if any."""
    if _MARKDOWN.value:
        text = "\n".join(table.to_markdown() for table in tables)
        pathlib.Path(_MARKDOWN.value).write_text(text)


def compare(before: str, after: str) -> None:
    """Shows what changed between two reports; exits with status 1 where it became worse."""
    console = make_console()
    with bad_input_exits():
        check_outputs(_MARKDOWN.value, others=[before, after])
        comparison = compare_reports(read_report(before), read_report(after))
    for table in comparison.tables():
        console.print(table.to_rich())
    write_markdown(comparison.tables())
    if comparison.regressions:
        raise SystemExit("\n".join(map(str, comparison.regressions)))


if __name__ == "__main__":
    app.run(main)
