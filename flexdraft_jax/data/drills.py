"""Arithmetic drills: the calculations of the word problems without the story around them.

A word problem spends three hundred bytes on two or three calculations. A drill is all calculation,
so a small model sees each fact many times more often for the same effort.
"""

import random

from flexdraft_jax.data.word_problems import calculate

_CALCULATIONS = 6
_LARGEST = {"+": 100, "-": 100, "x": 12, "/": 144}


def drill(seed: int, index: int) -> tuple[str, str]:
    """Returns the prompt and the response of one drill, the same for every equal call.

    The response is determined by the prompt, and worded like the calculations of the word problems.
    """
    rng = random.Random(f"{seed}:drill:{index}")
    asked: list[str] = []
    worked: list[str] = []
    while len(asked) < _CALCULATIONS:
        operator = "+-+-x/"[int(rng.random() * 6)]
        a, b = (1 + int(rng.random() * _LARGEST[operator]) for _ in range(2))
        if operator == "/":
            b = 1 + b % 12
        if (calculation := calculate(a, operator, b)) is not None:
            asked.append(f"{a} {operator} {b}")
            worked.append(calculation[1])
    return f"Work out {', '.join(asked)}.", f"{'. '.join(worked)}."
