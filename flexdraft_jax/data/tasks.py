"""Prompts of public benchmarks, from files that are on this machine already.

Nothing is downloaded. The formats are those that papers on speculative decoding use: one turn of
the user, with thinking switched off in the chat template.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import Message, encode_prompt
from flexdraft_jax.data.conversations import is_unicode, parse_object, read_lines

_STEP_BY_STEP = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Task:
    """A public benchmark.

    Attributes:
      hub: of the dataset on the Hugging Face hub.
      config: of the dataset; "" where it has one alone.
      split: that is measured on.
      fields: names that the prompt goes by; the first that is there is taken.
      before: what the user says before it.
      after: what the user says behind it.
    """

    hub: str
    config: str
    split: str
    fields: tuple[str, ...]
    before: str = ""
    after: str = ""


TASKS: Mapping[str, Task] = {
    "gsm8k": Task("openai/gsm8k", "main", "test", ("question",), after=_STEP_BY_STEP),
    "math500": Task("HuggingFaceH4/MATH-500", "", "test", ("problem",), after=_STEP_BY_STEP),
    "humaneval": Task(
        "openai/openai_humaneval",
        "",
        "test",
        ("prompt",),
        before="Write a solution to the following problem and make sure that it passes the tests:\n"
        "```python\n",
        after="\n```",
    ),
    "mbpp": Task("google-research-datasets/mbpp", "sanitized", "test", ("prompt", "text")),
    # Of two turns the first: the second would need the model's own answer to it.
    "mt_bench": Task("HuggingFaceH4/mt_bench_prompts", "", "train", ("turns", "prompt")),
}


class TaskMissingError(FileNotFoundError):
    """There are no files of a task on this machine."""


def load_task(name: str, directory: str | os.PathLike[str] | None = None) -> list[str]:
    """What the user says in each prompt of a task.

    Looked for, in this order: NAME.jsonl, NAME.parquet or a folder NAME of such files in the
    directory; the caches of the Hugging Face hub and of its library `datasets`; and the data
    directory of TFDS, whose files must be array records. Where a folder or a cache holds several
    versions, the newest is taken.

    Args:
      name: a key of `TASKS`.
      directory: of local files; None looks into caches alone.

    Raises:
      ValueError: an unknown task, or a file that is broken or lacks the prompts.
      TaskMissingError: there are no files that can be read; the message says where they were looked
        for.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r}: must be one of {', '.join(TASKS)}")
    if directory is not None and not Path(directory).is_dir():
        raise ValueError(f"tasks_dir={os.fspath(directory)!r}: there is no such directory")
    task = TASKS[name]
    places = _places(name, task, directory)
    for place in places:
        files = _files(place, task)
        if files:
            return _prompts(task, place, itertools.chain.from_iterable(map(_records, files)))
    tfds_files = _tfds_directory(name)
    if tfds_files is not None:
        return _prompts(task, tfds_files, _tfds_records(tfds_files, task.split))
    looked = [*map(str, places), str(_tfds_root() / name)]
    raise TaskMissingError(f"no files of {name}: there is none of {', '.join(looked)}")


def encode_task(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]) -> list[list[int]]:
    """Token ids of prompts as a user's turn, with thinking off where the template can think."""
    off = {"enable_thinking": False}
    return [encode_prompt(tokenizer, [Message("user", text)], off) for text in prompts]


def _places(name: str, task: Task, directory: str | os.PathLike[str] | None) -> list[Path]:
    """Files and folders that may hold the task."""
    places = []
    if directory is not None:
        places += [Path(directory) / f"{name}{suffix}" for suffix in (".jsonl", ".parquet", "")]
    owner, dataset = task.hub.split("/")
    arrow_cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME) / "datasets"))
    return [
        *places,
        Path(HF_HUB_CACHE) / f"datasets--{owner}--{dataset}" / "snapshots",
        arrow_cache / f"{owner}___{dataset.lower()}",
    ]


def _files(place: Path, task: Task) -> list[Path]:
    """The files of the task's configuration and split, as far as their paths name them."""
    if place.is_file():
        return [place]
    files = sorted(path for path in place.rglob("*") if path.suffix in _READERS and path.is_file())
    for word in (task.config, task.split):
        pattern = re.compile(rf"(^|[/_.-]){re.escape(word)}([/_.-]|$)")
        named = [path for path in files if pattern.search(path.relative_to(place).as_posix())]
        files = named if word and named else files
    # A cache keeps a folder for each revision.
    newest = max((path.parent.stat().st_mtime for path in files), default=0.0)
    return [path for path in files if path.parent.stat().st_mtime == newest]


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record of a file, with its place for an error."""
    try:
        records = _READERS[path.suffix](path)
    except (OSError, ValueError, pa.ArrowException, RecursionError) as error:
        raise ValueError(f"{path}: is broken ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}, record {number}", record


def _read_jsonl(path: Path) -> list[Any]:
    records = []
    for number, line in read_lines(path):
        try:
            records.append(parse_object(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return records


def _read_parquet(path: Path) -> list[Any]:
    return pq.read_table(path).to_pylist()


def _read_arrow(path: Path) -> list[Any]:
    """As `datasets` writes its cache."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


_READERS: Mapping[str, Callable[[Path], list[Any]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


def _tfds_root() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def _tfds_directory(name: str) -> Path | None:
    """Of the newest version of a prepared dataset."""
    found = sorted((_tfds_root() / name).rglob("dataset_info.json"))
    return found[-1].parent if found else None


def _tfds_records(directory: Path, split: str) -> Iterator[tuple[str, Any]]:
    import tensorflow_datasets as tfds

    try:
        source = tfds.builder_from_directory(directory).as_data_source(split=split)
        records = [
            {field: v.decode() if isinstance(v, bytes) else v for field, v in record.items()}
            for record in source
        ]
    except (NotImplementedError, ImportError) as error:
        # TFDS reads other files with TensorFlow alone.
        raise TaskMissingError(
            f"{directory}: is no set of array records, which alone can be read without TensorFlow"
        ) from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{directory}: must hold a split {split!r} ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{directory}, record {number}", record


def _prompts(task: Task, place: Path, records: Iterable[tuple[str, Any]]) -> list[str]:
    prompts = [_prompt(task, *record) for record in records]
    if not prompts:
        raise ValueError(f"{place}: must hold prompts, and holds none")
    return prompts


def _prompt(task: Task, where: str, record: Any) -> str:
    fields = record if isinstance(record, dict) else {}
    text = next((fields[name] for name in task.fields if fields.get(name)), None)
    if isinstance(text, list):
        text = text[0]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: must have text in {' or '.join(map(repr, task.fields))}, has the fields "
            f"{list(fields)}"
        )
    if not is_unicode(text):
        raise ValueError(f"{where}: is not valid Unicode: was it UTF-8? {text[:80]!a}")
    return task.before + text + task.after
