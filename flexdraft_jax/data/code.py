"""Chat turns from the Python standard library's own source: the domain of code.

Each task asks to complete a function or method, found by `ast`; a long body becomes several tasks,
the later ones asking to continue from the lines before. Whole modules are held out, never single
functions, so that held-out code is unseen.
"""

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "held_out"]

_MIN_TASK_BYTES = 120
_MAX_PROMPT_BYTES = 320
_MAX_RESPONSE_BYTES = 640
_CONTEXT_LINES = 5
_HELD_OUT_ONE_IN = 20
# Test suites, bundled wheels, other people's packages, and modules that are data rather than code.
_EXCLUDED_PARTS = frozenset({
    "__pycache__", "__phello__", "dist-packages", "encodings", "ensurepip", "idlelib", "idle_test",
    "lib2to3", "lib-dynload", "pydoc_data", "site-packages", "test", "tests", "turtledemo",
})  # fmt: skip
_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class CodeTask:
    """A request to complete or continue a function, with its real source.

    Attributes:
      prompt: instruction that names the module, then the function's first lines; ASCII.
      response: the lines that follow, with their indentation; ASCII, no newline at the end.
      module: dotted module name, the unit of the train / held-out split.
    """

    prompt: str
    response: str
    module: str


def code_tasks(split: Split) -> list[CodeTask]:
    """Returns the tasks of one split, in a fixed order for one version of Python.

    Raises:
      ValueError: if `split` is unknown.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    return [task for task in _all_tasks() if is_held_out(task.module) == (split == "held_out")]


def is_held_out(module: str) -> bool:
    """Tells whether a module belongs to the held-out split (about one in twenty, by name)."""
    digest = hashlib.sha256(module.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


@lru_cache(maxsize=1)
def _all_tasks() -> tuple[CodeTask, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    tasks: dict[str, CodeTask] = {}
    # Training modules come first: what is copied between modules counts as seen.
    modules = sorted(_modules(root), key=lambda found: (is_held_out(found[0]), found[0]))
    for module, path in modules:
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in other people's source
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):
            continue
        lines = source.expandtabs(8).splitlines()
        for owner, function in _functions(tree, owner=None):
            for task in _function_tasks(module, owner, function, lines):
                if task.prompt.isascii() and task.response.isascii():
                    tasks.setdefault(task.response, task)
    return tuple(tasks.values())


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        excluded = any(part in _EXCLUDED_PARTS for part in parts)
        if excluded or any(part.startswith(_EXCLUDED_PREFIXES) for part in parts):
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _functions(node: ast.AST, owner: str | None) -> Iterator[tuple[str | None, _Function]]:
    """Yields (class name or None, function) for every function that is not inside another one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield owner, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, owner=child.name)
        elif isinstance(child, ast.If | ast.Try):
            yield from _functions(child, owner)


def _function_tasks(
    module: str, owner: str | None, function: _Function, lines: list[str]
) -> Iterator[CodeTask]:
    first = min([function.lineno, *(item.lineno for item in function.decorator_list)])
    docstring = ast.get_docstring(function)
    statements = function.body[1:] if docstring else function.body
    if not statements or function.body[0].lineno == function.lineno:
        return
    head = lines[first - 1 : function.body[0].lineno - 1]
    if docstring:
        # One line of the docstring says what to write; the rest would have to be guessed.
        summary = docstring.splitlines()[0].replace('"', "'").replace("\\", "/")
        head.append(" " * function.body[0].col_offset + f'"""{summary}"""')
    start = function.body[0].end_lineno if docstring else function.body[0].lineno - 1
    head = _dedent(head, function.col_offset)
    body = _dedent(lines[start : function.end_lineno], function.col_offset)
    while body and not body[0]:
        body = body[1:]

    kind = "function" if owner is None else f"method of `{owner}`"
    prompt = f"Complete this {kind} from `{module}`:\n\n" + "\n".join(head)
    for chunk in _chunks(body):
        response = "\n".join(chunk).rstrip()
        fits = len(prompt) <= _MAX_PROMPT_BYTES and len(response) <= _MAX_RESPONSE_BYTES
        if fits and response and len(prompt) + len(response) >= _MIN_TASK_BYTES:
            yield CodeTask(prompt, response, module)
        context = "\n".join(chunk[-_CONTEXT_LINES:]).rstrip()
        prompt = f"Continue this {kind} from `{module}`:\n\n{head[0]}\n    ...\n{context}"


def _dedent(lines: list[str], width: int) -> list[str]:
    # Lines of a long string may stand further left than the code around them.
    return [line[min(width, len(line) - len(line.lstrip())) :].rstrip() for line in lines]


def _chunks(lines: list[str]) -> Iterator[list[str]]:
    """Cuts a body at line borders into runs that fit a response."""
    chunk: list[str] = []
    size = 0
    for line in lines:
        if chunk and size + len(line) + 1 > _MAX_RESPONSE_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line) + 1
    if chunk:
        yield chunk
