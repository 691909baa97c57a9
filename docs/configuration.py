"""Writes configuration.md from the dataclasses it describes: `python docs/configuration.py`.

A field's meaning is the comment at it, or its line in the docstring's Attributes. A test compares
the page with what is written here.
"""

import ast
import dataclasses
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from flexdraft_jax.config import Experts, RopeScaling, TargetConfig
from flexdraft_jax.data.prepare import PrepareConfig
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.rounds import Answer, Update
from flexdraft_jax.decoding.rows import GenerateOutput
from flexdraft_jax.evaluation.benchmark_report import BenchmarkSettings
from flexdraft_jax.evaluation.demo import DemoSettings
from flexdraft_jax.evaluation.generation import GenerationSettings
from flexdraft_jax.evaluation.request_lines import LineSettings
from flexdraft_jax.training.config import TrainDraftConfig, TrainTargetConfig

PAGE = Path(__file__).with_name("configuration.md")

_HEAD = """# Configuration

Written by `docs/configuration.py` from the dataclasses; change those, and run it again.

A training run is described by a Python file with a `get_config()` (see `configs/`), and any field
can be set on the command line by its full name, as in `--set train.learning_rate=3e-4`. A name that
does not exist and a value of the wrong kind are refused. Fields without a default have to be given
by the file.

Flags of scripts without a section here, such as `train/regenerate.py`, are told by their `--help`.
Two defaults differ among them: `confidence_threshold` is 0.01 in `fd.generate`, `fd.stream`,
`fd.Request` and `infer/decode_file.py`, and 0 in the other scripts that have it; and
`max_new_tokens` is what suits each.
"""

_SECTIONS: tuple[tuple[str, str, type], ...] = (
    ("A drafter", "`train/train_draft.py`, `train/study.py`, `train/plan.py`.", TrainDraftConfig),
    ("A small target", "`train/train_target.py`.", TrainTargetConfig),
    ("Data", "Flags of `train/prepare_data.py`.", PrepareConfig),
    ("One prompt", "Flags of `infer/generate.py`.", GenerationSettings),
    (
        "A file of prompts",
        "Flags of `infer/decode_file.py`; a line may set the first six for itself.",
        LineSettings,
    ),
    ("The benchmark", "Flags of `infer/benchmark.py`.", BenchmarkSettings),
    ("The demo", "Flags of `infer/demo.py`, but for `batch_size`.", DemoSettings),
    ("A request", "What `DecodeEngine` takes, as `fd.Request`.", Request),
    ("An answer", "What `DecodeEngine.run` yields, as `fd.Answer`.", Answer),
    ("An update", "What `DecodeEngine.stream` yields, as `fd.Update`.", Update),
    (
        "A batch of answers",
        "What `fd.generate` returns and `fd.stream` yields, as `fd.GenerateOutput`, which also has "
        "`tau`.",
        GenerateOutput,
    ),
    ("A target", "Read from its `config.json`, as `fd.TargetConfig`.", TargetConfig),
    ("Rescaled RoPE", "`fd.RopeScaling`, of a target.", RopeScaling),
    ("Experts", "`experts`, of a target.", Experts),
)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field as its source says it.

    Attributes:
        name: without the groups it is in.
        kind: its annotation.
        default: as it is written, or the value of a constant; "" where there is none.
        meaning: a sentence or two.
    """

    name: str
    kind: str
    default: str
    meaning: str


def fields_of(cls: type) -> list[Field]:
    """The fields of a dataclass, in order.

    Raises:
        ValueError: a field says nothing about itself; its name is given.
    """
    source = textwrap.dedent(inspect.getsource(cls))
    lines, comments = source.splitlines(), _comments(source)
    described = _attributes(inspect.getdoc(cls) or "")
    found = []
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        meaning = described.get(name) or _comment_at(node, lines, comments)
        is_group = dataclasses.is_dataclass(get_type_hints(cls)[name])
        if not meaning and not is_group:
            raise ValueError(f"{cls.__name__}.{name} has no comment and no line in Attributes")
        found.append(Field(name, _kind(node.annotation), _default(node.value, cls), meaning))
    return found


def render() -> str:
    """The page."""
    parts = [_HEAD]
    shown: dict[type, str] = {}
    for title, where, cls in _SECTIONS:
        parts.append(f"## {title}\n\n{where}\n")
        parts += _tables(cls, "", shown)
    return "\n".join(parts)


def _tables(cls: Any, prefix: str, shown: dict[type, str]) -> Iterator[str]:
    """A table of the fields of a dataclass, then one for each of its groups."""
    hints = get_type_hints(cls)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    if cls in shown:
        yield f"### `{prefix}*`\n\nAs `{shown[cls]}*` above.\n"
        return
    if prefix:
        shown[cls] = prefix
        yield f"### `{prefix}*`\n\n{(inspect.getdoc(cls) or '').splitlines()[0]}\n"
    rows = [field for field in fields_of(cls) if field.name not in groups]
    if rows:
        lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
        for field in rows:
            cells = [f"`{prefix}{field.name}`", _code(field.kind), _code(field.default)]
            lines.append(f"| {' | '.join([*cells, field.meaning.replace('|', chr(92) + '|')])} |")
        yield "\n".join(lines) + "\n"
    for name, group in groups.items():
        yield from _tables(group, f"{prefix}{name}.", shown)


def _comments(source: str) -> dict[int, str]:
    """Comments by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _comment_at(node: ast.AnnAssign, lines: list[str], comments: dict[int, str]) -> str:
    """The comment lines above a field, then the one behind it."""
    assert node.end_lineno is not None  # ast.parse always sets it.
    above: list[str] = []
    line = node.lineno - 1
    while line in comments and lines[line - 1].lstrip().startswith("#"):
        above.insert(0, comments[line])
        line -= 1
    behind = [comments[node.end_lineno]] if node.end_lineno in comments else []
    return " ".join([*above, *behind])


def _attributes(docstring: str) -> dict[str, str]:
    """The entries under "Attributes:", each on one line."""
    section = docstring.partition("Attributes:\n")[2]
    entries = re.split(r"^ {2,4}(\w+): ", section, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)
    }


def _kind(node: ast.expr) -> str:
    """An annotation; the choices themselves for a Literal."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        choices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return " or ".join(ast.unparse(choice) for choice in choices)
    return ast.unparse(node)


def _default(node: ast.expr | None, cls: type) -> str:
    """As it is written in the class; the value itself for a constant of the module."""
    if node is None:
        return ""
    if isinstance(node, ast.Name):
        return repr(getattr(sys.modules[cls.__module__], node.id))
    text = ast.unparse(node)
    factory = re.search(r"default_factory=(\w+)\)", text)
    return f"{factory[1]}()" if factory else text


def _code(text: str) -> str:
    return f"`{text}`".replace("|", r"\|") if text else ""


if __name__ == "__main__":
    PAGE.write_text(render())
