"""Answers every line of a JSONL file, at full batch; started again, it goes on where it was.

    python infer/decode_file.py --input prompts.jsonl --output answers.jsonl
    python infer/decode_file.py --input prompts.jsonl --output answers.jsonl \
        --target path/to/target --draft path/to/draft --dtype bfloat16 --plot answers.png

On a TPU pod, the same command with --pod on every host, and files that all of them see. On other
machines, with JAX_COORDINATOR_ADDRESS=host:port of the first one, JAX_NUM_PROCESSES and
JAX_PROCESS_ID set. Each host answers its share of the lines with its own devices; --mesh spreads
weights and rows over these.

A line holds a `prompt`, `messages` or `token_ids`, and may have an `id` and settings of its own:
see flexdraft_jax/evaluation/request_lines.py.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging

from flexdraft_jax.data.chat import parse_template_kwargs
from flexdraft_jax.decoding.costs import SCHEDULES
from flexdraft_jax.decoding.engine import DecodeEngine
from flexdraft_jax.decoding.sampling import SAMPLING_RULES
from flexdraft_jax.evaluation.decode_file import files_of, stats_path
from flexdraft_jax.evaluation.file_stats import plot_summary
from flexdraft_jax.evaluation.highlight import make_console
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs, load_models
from flexdraft_jax.evaluation.parts import decode_together
from flexdraft_jax.evaluation.request_lines import LineSettings
from flexdraft_jax.models.attention import BACKENDS
from flexdraft_jax.parallel import processes
from flexdraft_jax.parallel.mesh import parse_mesh

_DEFAULT = LineSettings()

_INPUT = flags.DEFINE_string("input", None, "JSONL file of requests.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write.", required=True)
_TARGET = flags.DEFINE_string(
    "target", None, "Hugging Face directory; the embedded default if left out."
)
_DRAFT = flags.DEFINE_string("draft", None, "Directory of the target's draft.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the weights in memory.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Spread the weights over devices, as in data=2,tensor=4; one device if left out."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows decoded together by a host.")
_SCHEDULE = flags.DEFINE_enum("schedule", "flex", SCHEDULES, "Only the speed depends on it.")
_BLOCK_SIZE = flags.DEFINE_integer(
    "block_size", None, "Tokens of a candidate block; the draft's own if None."
)
_CONFIDENCE_THRESHOLD = flags.DEFINE_float(
    "confidence_threshold",
    _DEFAULT.confidence_threshold,
    "Drafts less sure than this are not verified; 0 verifies all.",
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "Longest prompt and answer together, in tokens; what fits if None."
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, in tokens."
)
_TEMPERATURE = flags.DEFINE_float("temperature", _DEFAULT.temperature, "0 decodes greedily.")
_TOP_K = flags.DEFINE_integer("top_k", _DEFAULT.top_k, "Most likely tokens to draw from; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", _DEFAULT.top_p, "Probability of the tokens to draw from.")
_MIN_P = flags.DEFINE_float("min_p", _DEFAULT.min_p, "Least share of the largest probability.")
_SEED = flags.DEFINE_integer("seed", _DEFAULT.seed, "Of the random numbers.")
_SAMPLING = flags.DEFINE_enum(
    "sampling", "coupled", SAMPLING_RULES, "How drafts are accepted at temperature > 0."
)
_RAW = flags.DEFINE_bool("raw", False, "Take prompts as they are, without the chat template.")
_ATTENTION = flags.DEFINE_enum(
    "attention", "reference", list(BACKENDS), "To the cache; pallas is a kernel for TPUs and GPUs."
)
_TEMPLATE_KWARGS = flags.DEFINE_string(
    "template_kwargs", "{}", "Variables of the chat template, as a JSON object."
)
_POD = flags.DEFINE_bool("pod", False, "Join the other hosts of a TPU pod.")
_PLOT = flags.DEFINE_string("plot", None, "Draw acceptance and tau of all lines into this PNG.")


def main(argv: Sequence[str]) -> None:
    """Answers the file."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    console = make_console(stderr=True)
    with bad_input_exits():
        processes.initialize(pod=_POD.value)
        output = Path(_OUTPUT.value)
        check_outputs(_PLOT.value, others=(_INPUT.value, *files_of(output)))
        settings = LineSettings(
            max_new_tokens=_MAX_NEW_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            min_p=_MIN_P.value,
            seed=_SEED.value,
            confidence_threshold=_CONFIDENCE_THRESHOLD.value,
            raw=_RAW.value,
            template_kwargs=parse_template_kwargs(_TEMPLATE_KWARGS.value),
        )
        mesh = None if _MESH.value is None else parse_mesh(_MESH.value).build(jax.local_devices())
        models = load_models(_TARGET.value, _DRAFT.value, dtype=_DTYPE.value, mesh=mesh)
        engine = DecodeEngine(
            models.target,
            models.draft,
            batch_size=_BATCH_SIZE.value,
            schedule=_SCHEDULE.value,
            sampling=_SAMPLING.value,
            attention=_ATTENTION.value,
            block_size=_BLOCK_SIZE.value,
            max_length=_MAX_LENGTH.value,
            progress=console.print,
        )
        summary = decode_together(_INPUT.value, _OUTPUT.value, models, engine, settings, console)
    if not processes.is_main():
        return
    note = f"Answers in {_OUTPUT.value}, their timing in {stats_path(output)}"
    make_console().print(summary.to_table("Answered", note).to_rich())
    if _PLOT.value:
        plot_summary(summary, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
