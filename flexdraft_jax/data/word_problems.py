"""Step-by-step word problems from a seeded generator: the domain of maths.

The solution is a function of the question alone (variety lies in the question), every calculation
in it is written out and true, and its last sentence is "The answer is N.". Sums and differences
stay within 0..100 and products and quotients within the 12-times table.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter
from typing import Any, TypeVar

from flexdraft_jax.data.word_problem_scenes import DAYS, ITEMS, PEOPLE
from flexdraft_jax.data.word_problem_shapes import SHAPES, Shape

TRAIN_SEED = 0
HELD_OUT_SEED = 1

_T = TypeVar("_T")
_LARGEST_SUM = 100
_LARGEST_FACTOR = 12
_ANSWER = re.compile(r"The answer is (\d+)\.")


@dataclass(frozen=True)
class WordProblem:
    """A question with its worked solution.

    Attributes:
      question: 1 to 4 sentences, ASCII.
      solution: worked steps, ending in "The answer is N.".
      answer: N, an integer >= 0.
      shape: name of the kind of problem.
      num_steps: calculations that it takes, 1 to 3.
    """

    question: str
    solution: str
    answer: int
    shape: str
    num_steps: int


def word_problem(seed: int, index: int) -> WordProblem:
    """Returns problem `index` of the stream `seed`; the same pair always gives the same problem.

    Raises:
      ValueError: if `seed` or `index` is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be >= 0, got seed={seed}, index={index}")
    # A string seed is hashed with SHA-512, so neighbouring (seed, index) pairs are independent.
    rng = random.Random(f"{seed}:{index}")
    shape = _pick(rng, SHAPES)
    numbers, calculations = _draw_numbers(rng, shape)
    fields, nouns = _draw_scene(rng)
    fields |= numbers
    fields |= {f"s{i}": text for i, text in enumerate(calculations, start=1)}
    answer = numbers[f"r{len(shape.steps)}"]
    writer = _NounFormatter(nouns)
    question = writer.vformat(_pick(rng, shape.questions), (), fields)
    solution = writer.vformat(shape.solution, (), fields)
    return WordProblem(
        question=question,
        solution=f"{solution} The answer is {answer}.",
        answer=answer,
        shape=shape.name,
        num_steps=len(shape.steps),
    )


def parse_answer(text: str) -> int | None:
    """Returns the number of the last "The answer is N." in `text`, or None if there is none."""
    found = _ANSWER.findall(text)
    return int(found[-1]) if found else None


@lru_cache(maxsize=4)
def train_questions(count: int) -> frozenset[str]:
    """Returns the questions of the first `count` training problems."""
    return frozenset(word_problem(TRAIN_SEED, index).question for index in range(count))


def occurs_in_training(problem: WordProblem, count: int) -> bool:
    """Tells whether the first `count` training problems ask the very same question."""
    return problem.question in train_questions(count)


def _draw_numbers(rng: random.Random, shape: Shape) -> tuple[dict[str, int], list[str]]:
    """Draws given numbers until every step stays within its limits.

    Returns:
      The given numbers and results by name, and the written calculation of each step.
    """
    while True:
        values = {
            name: low + _below(rng, high - low + 1) for name, (low, high) in shape.numbers.items()
        }
        calculations = []
        for i, step in enumerate(shape.steps, start=1):
            left, operator, right = step.split()
            worked = calculate(values[left], operator, values[right])
            if worked is None:
                break
            values[f"r{i}"], text = worked
            calculations.append(text)
        else:
            return values, calculations


def calculate(a: int, operator: str, b: int) -> tuple[int, str] | None:
    """Returns the result and the written calculation, or None where it leaves the limits.

    Args:
      a: left operand.
      operator: "+", "-", "x" or "/".
      b: right operand.
    """
    if operator in "+-":
        sign = 1 if operator == "+" else -1
        result = a + sign * b
        if max(a, b, result) > _LARGEST_SUM or result < 1:
            return None
        text = f"{a} {operator} {b} = {result}"
        tens, ones = b - b % 10, b % 10
        if a >= 10 and tens and ones:
            # Tens first, then ones: each part is small enough for a tiny model to learn.
            middle = a + sign * tens
            parts = f"{a} {operator} {tens} = {middle} and {middle} {operator} {ones} = {result}"
            text = f"{parts}, so {text}"
        return result, text
    if operator == "x":
        if max(a, b) > _LARGEST_FACTOR:
            return None
        return a * b, f"{a} x {b} = {a * b}"
    quotient, remainder = divmod(a, b)
    if remainder or not 2 <= quotient <= _LARGEST_FACTOR or b > _LARGEST_FACTOR:
        return None
    return quotient, f"{a} / {b} = {quotient}, because {quotient} x {b} = {a}"


def _draw_scene(rng: random.Random) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Draws people, things and a day; returns template fields and nouns (singular, plural)."""
    item = _pick(rng, ITEMS)
    name, he = _pick(rng, PEOPLE)
    other = _pick(rng, [person for person, _ in PEOPLE if person != name])
    fields = {
        "A": name,
        "B": other,
        "he": he,
        "He": he.capitalize(),
        "his": {"he": "his", "she": "her"}[he],
        "day": _pick(rng, DAYS),
        "gains": _pick(rng, item.gains),
        "loses": _pick(rng, item.loses),
        "thing": item.thing,
        "things": item.things,
        "box": item.box,
        "boxes": item.boxes,
    }
    return fields, {"thing": (item.thing, item.things), "box": (item.box, item.boxes)}


class _NounFormatter(Formatter):
    """`str.format` whose format spec is a noun: `{a:thing}` gives "1 apple" or "7 apples"."""

    def __init__(self, nouns: Mapping[str, tuple[str, str]]):
        self._nouns = nouns

    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec:
            return str(value)
        singular, plural = self._nouns.get(format_spec, (format_spec, format_spec + "s"))
        return f"{value} {singular if value == 1 else plural}"


def _below(rng: random.Random, limit: int) -> int:
    # `random()` is the one method whose stream Python promises to keep across versions.
    return int(rng.random() * limit)


def _pick(rng: random.Random, options: Sequence[_T]) -> _T:
    return options[_below(rng, len(options))]
