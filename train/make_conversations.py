"""Writes prompts and responses of the two built-in domains as JSONL.

python train/make_conversations.py --count 2400 --seed 1 --output runs/conversations.jsonl
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags, logging

from flexdraft_jax.data.corpus import DOMAINS, conversation_lines, parse_domains
from flexdraft_jax.data.held_out import held_out_prompts, write_prompts
from flexdraft_jax.evaluation.loading import bad_input_exits, check_outputs

_DOMAINS = flags.DEFINE_list("domains", list(DOMAINS), "Kinds of prompts.")
_COUNT = flags.DEFINE_integer("count", 2400, "Lines to write, split over the domains.")
_SEED = flags.DEFINE_integer("seed", 1, "Another seed gives other lines.")
_OUTPUT = flags.DEFINE_string("output", None, "JSONL file to write.", required=True)
_HELD_OUT = flags.DEFINE_bool(
    "held_out", False, "Write prompts that no training text contains, with reference answers."
)


def main(argv: Sequence[str]) -> None:
    """Runs the program."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)  # JAX reports devices that it does not find.
    output = pathlib.Path(_OUTPUT.value)
    with bad_input_exits():
        domains = parse_domains(_DOMAINS.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        check_outputs(output)
        if _HELD_OUT.value:
            share = _COUNT.value // len(domains)
            prompts = [prompt for domain in domains for prompt in held_out_prompts(domain, share)]
            write_prompts(output, prompts)
        else:
            with output.open("w") as file:
                file.writelines(conversation_lines(domains, _COUNT.value, _SEED.value))
    print(f"wrote {output}")


if __name__ == "__main__":
    app.run(main)
