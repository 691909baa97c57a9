"""Prompts of public benchmarks, from tiny files laid out as caches lay them."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from flexdraft_jax.data import tasks
from flexdraft_jax.data.chat import build_byte_tokenizer
from flexdraft_jax.data.tasks import TASKS, TaskMissingError, encode_task, load_task

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
RECORDS = {
    "gsm8k": {"question": "How many?", "answer": "#### 3"},
    "math500": {"problem": "Solve $x$.", "solution": "1"},
    "humaneval": {"task_id": "HumanEval/0", "prompt": "def f():\n"},
    "mbpp": {"prompt": "Write f.", "code": "def f(): ..."},
    "mt_bench": {"question_id": 81, "turns": ["Write a post.", "Rewrite it."]},
}
PROMPTS = {
    "gsm8k": "How many?" + BOXED,
    "math500": "Solve $x$." + BOXED,
    "humaneval": "Write a solution to the following problem and make sure that it passes the "
    "tests:\n```python\ndef f():\n\n```",
    "mbpp": "Write f.",
    "mt_bench": "Write a post.",
}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub, of `datasets` and of TFDS; none of this machine is looked at."""
    monkeypatch.setattr(tasks, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


def write_parquet(path, *records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_file_gives_prompts_as_the_field_writes_them(name, suffix, tmp_path) -> None:
    path = tmp_path / f"{name}{suffix}"
    if suffix == ".parquet":
        write_parquet(path, RECORDS[name], RECORDS[name])
    else:
        # Line separators within a text are part of it.
        path.write_text(2 * (json.dumps(RECORDS[name], ensure_ascii=False) + "\n"))
    assert load_task(name, tmp_path) == [PROMPTS[name]] * 2


def test_a_folder_gives_the_split_that_is_measured_on(tmp_path) -> None:
    def other(text: str) -> dict[str, str]:
        return RECORDS["gsm8k"] | {"question": text}

    folder = tmp_path / "gsm8k"
    write_parquet(folder / "main" / "train-00000-of-00001.parquet", other("train"))
    write_parquet(folder / "main" / "test-00000-of-00002.parquet", other("1"))
    write_parquet(folder / "main" / "test-00001-of-00002.parquet", other("2"))
    write_parquet(folder / "socratic" / "test-00000-of-00001.parquet", other("socratic"))
    assert load_task("gsm8k", tmp_path) == ["1" + BOXED, "2" + BOXED]


def test_the_newest_revision_in_the_hubs_cache_is_taken(caches) -> None:
    snapshots = caches / "hub" / "datasets--HuggingFaceH4--MATH-500" / "snapshots"
    for age, text in enumerate(("new", "old")):
        folder = snapshots / f"{age}abc"
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text(json.dumps({"problem": text}))
        os.utime(folder, (1e9 - age, 1e9 - age))
    assert load_task("math500") == ["new" + BOXED]


def test_the_cache_of_datasets_is_read(caches) -> None:
    folder = caches / "datasets" / "openai___openai_humaneval" / "openai_humaneval" / "0.0.0"
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([RECORDS["humaneval"]])
    with pa.ipc.new_stream(str(folder / "openai_humaneval-test.arrow"), table.schema) as out:
        out.write_table(table)
    assert load_task("humaneval") == [PROMPTS["humaneval"]]


def test_array_records_of_tfds_are_read(caches) -> None:
    with tfds.core.registered.skip_registration():

        class Gsm8k(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = tfds.features.FeaturesDict({"question": tfds.features.Text()})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"test": self._generate_examples()}

            def _generate_examples(self):
                yield 0, {"question": "How many?"}

    builder = Gsm8k(data_dir=str(caches / "tfds"), file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    assert load_task("gsm8k") == [PROMPTS["gsm8k"]]


def test_a_tfds_set_of_other_files_is_as_good_as_none(caches, monkeypatch) -> None:
    (caches / "tfds/gsm8k/1.0.0").mkdir(parents=True)
    (caches / "tfds/gsm8k/1.0.0/dataset_info.json").touch()

    class Builder:
        def as_data_source(self, split: str) -> None:
            raise NotImplementedError

    monkeypatch.setattr(tfds, "builder_from_directory", lambda directory: Builder())
    with pytest.raises(TaskMissingError, match="1.0.0: is no set of array records"):
        load_task("gsm8k")


def test_a_task_that_is_not_there_says_where_it_was_looked_for(caches) -> None:
    with pytest.raises(TaskMissingError) as error:
        load_task("mbpp", caches)
    for place in ("mbpp.jsonl", "datasets--google-research-datasets--mbpp", "tfds/mbpp"):
        assert place in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"math500.jsonl: is broken \(line 1: not JSON"),
        ('{"problem": "a"}\r\n\r\n{', r"broken \(line 3: not JSON: .* line 1 column 2"),
        ('{"problem": "\\ud800"}', r"math500.jsonl, record 1: is not valid Unicode"),
        ("\xff", r"math500.jsonl: is broken"),
        ('{"problem": "a"}\n\n{"question": "b"}', r"record 2: must have text in 'problem', has"),
        ('{"problem": ""}', "record 1: must have text in 'problem'"),
        ('{"problem": 3}', "record 1: must have text"),
        ("[]", "line 1: not an object"),
        ("\n", "math500.jsonl: must hold prompts, and holds none"),
    ],
)
def test_broken_files_are_named(text: str, message: str, tmp_path) -> None:
    (tmp_path / "math500.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_task("math500", tmp_path)


def test_a_broken_parquet_file_is_named(tmp_path) -> None:
    write_parquet(tmp_path / "mbpp.parquet", RECORDS["mbpp"])
    whole = (tmp_path / "mbpp.parquet").read_bytes()
    (tmp_path / "mbpp.parquet").write_bytes(whole[:9] + b"\xff" * 9 + whole[18:])
    with pytest.raises(ValueError, match=r"mbpp.parquet: is broken"):
        load_task("mbpp", tmp_path)
    (tmp_path / "mbpp.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"mbpp.parquet: is broken"):
        load_task("mbpp", tmp_path)


def test_unknown_tasks_and_directories_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="task 'gsm': must be one of gsm8k, math500"):
        load_task("gsm")
    with pytest.raises(ValueError, match="tasks_dir='.*nowhere': there is no such directory"):
        load_task("mbpp", tmp_path / "nowhere")


def test_thinking_is_off() -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if enable_thinking is false %}off{% endif %}"
    )
    (tokens,) = encode_task(tokenizer, ["hi "])
    assert tokenizer.decode(tokens) == "hi off"
