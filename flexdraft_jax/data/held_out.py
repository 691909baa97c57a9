"""Held-out prompts to decode, and the repetition statistic that goes with their numbers.

The prompts ship as a file, so that results can be compared whatever the user's version of Python
and its library.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count as count_from
from itertools import zip_longest
from pathlib import Path

from flexdraft_jax.data.code import CodeTask, code_tasks
from flexdraft_jax.data.corpus import Domain, check_domain
from flexdraft_jax.data.word_problems import HELD_OUT_SEED, occurs_in_training, word_problem

DEFAULT_PROMPTS = Path(__file__).parents[1] / "assets" / "default" / "prompts.jsonl"

# Held-out problems are checked against as many training problems; it takes a few seconds.
_CHECKED_TRAINING_PROBLEMS = 100_000
# Shorter responses give too few decoding steps to measure.
_MIN_CODE_RESPONSE_BYTES = 80


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt that no training text contains.

    Attributes:
      domain: "word_problems" or "code".
      prompt: the user's turn, ASCII.
      reference: a right answer (word problems) or the real source (code).
      answer: the number asked for, None for code.
    """

    domain: Domain
    prompt: str
    reference: str
    answer: int | None = None


def held_out_prompts(domain: Domain, count: int) -> list[HeldOutPrompt]:
    """Makes the first `count` held-out prompts of a domain.

    Code prompts take turns among the held-out modules, so that no large module dominates.

    Raises:
      ValueError: if `domain` is unknown, or `count` is below 1 or more than the domain has.
    """
    check_domain(domain)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if domain == "word_problems":
        return _word_problem_prompts(count)
    by_module: dict[str, list[CodeTask]] = defaultdict(list)
    for task in code_tasks("held_out"):
        if len(task.response) >= _MIN_CODE_RESPONSE_BYTES:
            by_module[task.module].append(task)
    for tasks in by_module.values():
        tasks.sort(key=lambda task: hashlib.sha256(task.prompt.encode()).digest())
    rounds = zip_longest(*(by_module[module] for module in sorted(by_module)))
    tasks = [task for one_round in rounds for task in one_round if task is not None]
    if count > len(tasks):
        raise ValueError(f"count must be at most {len(tasks)} for code, got {count}")
    return [HeldOutPrompt("code", task.prompt, task.response) for task in tasks[:count]]


def default_prompts(domain: Domain, num_prompts: int | None = None) -> list[HeldOutPrompt]:
    """Returns the shipped held-out prompts of one domain; the first of them, or all if None.

    Raises:
      ValueError: if `domain` is unknown, or there are fewer than `num_prompts`.
    """
    check_domain(domain)
    prompts = [prompt for prompt in read_prompts(DEFAULT_PROMPTS) if prompt.domain == domain]
    if num_prompts is not None and not 1 <= num_prompts <= len(prompts):
        raise ValueError(
            f"num_prompts={num_prompts}: must be between 1 and {len(prompts)}, the held-out "
            f"{domain} prompts there are"
        )
    return prompts[:num_prompts]


def write_prompts(path: str | os.PathLike[str], prompts: Iterable[HeldOutPrompt]) -> None:
    """Writes one JSON object a line; the field `answer` is left out where it is None."""
    lines = []
    for prompt in prompts:
        fields = {name: value for name, value in asdict(prompt).items() if value is not None}
        lines.append(json.dumps(fields) + "\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_prompts(path: str | os.PathLike[str]) -> list[HeldOutPrompt]:
    """Reads what :func:`write_prompts` wrote.

    Raises:
      ValueError: if a line is not a prompt, naming the file and the line.
    """
    prompts = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            prompt = HeldOutPrompt(**json.loads(line))
            check_domain(prompt.domain)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an object with domain, prompt, reference and "
                f"perhaps answer ({error})"
            ) from error
        prompts.append(prompt)
    return prompts


def distinct_ngrams(token_lists: Iterable[Sequence[int]], n: int = 8) -> float:
    """Returns the share of distinct n-grams within a text, averaged over texts.

    1 means that nothing repeats; a text stuck in a loop comes near 0. Loops are easy to draft, so
    an acceptance length is worth little without this number beside it. Texts of fewer than `n`
    tokens do not count, and without any others the result is 0.

    >>> distinct_ngrams([[1, 2, 1, 2, 1]], n=2)
    0.5

    Raises:
      ValueError: if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    shares = []
    for tokens in token_lists:
        ngrams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
        if ngrams:
            shares.append(len(set(ngrams)) / len(ngrams))
    return sum(shares) / len(shares) if shares else 0.0


def _word_problem_prompts(count: int) -> list[HeldOutPrompt]:
    prompts: dict[str, HeldOutPrompt] = {}
    for index in count_from():
        problem = word_problem(HELD_OUT_SEED, index)
        if not occurs_in_training(problem, _CHECKED_TRAINING_PROBLEMS):
            prompts[problem.question] = HeldOutPrompt(
                "word_problems", problem.question, problem.solution, problem.answer
            )
        if len(prompts) == count:
            break
    return list(prompts.values())
