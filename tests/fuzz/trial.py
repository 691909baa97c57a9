"""What an entry is to the runner."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What scripts show as one line: `flexdraft_jax.evaluation.loading.bad_input_exits`.
FILE_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, FloatingPointError)
CALL_ERRORS = (*FILE_ERRORS, TypeError)


@dataclass(frozen=True)
class Trial:
    """One input.

    Attributes:
        run: hands it to the project; an AssertionError says that the answer is wrong.
        names: of which an error must hold one.
        what: is wrong with it, for people.
    """

    run: Callable[[], object]
    names: tuple[str, ...]
    what: str


@dataclass(frozen=True)
class Entry:
    """Something that takes input.

    Attributes:
        name: for the table.
        make: an input, of random choices, in an empty folder.
        errors: that it may refuse with.
    """

    name: str
    make: Callable[[random.Random, Path], Trial]
    errors: tuple[type[Exception], ...] = FILE_ERRORS
