"""Calls from Python with wild arguments, and files of requests."""

import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tiny
import wild
from rich.console import Console
from trial import CALL_ERRORS, Entry, Trial

import flexdraft_jax as fd
from flexdraft_jax.data.conversations import read_lines
from flexdraft_jax.data.fingerprints import settings_path
from flexdraft_jax.evaluation.decode_file import decode_file, stats_path
from flexdraft_jax.evaluation.request_lines import LineSettings

_MOST_WEIGHTS = 1_000_000
_PROMPTS = [[1, 2, 3], [256, 72, 257]]


def _anything(rng: random.Random) -> Any:
    """A value that is not even of JSON, or one that is."""
    other = (
        *(np.array(3), np.array([1, 2]), np.float32(0.5), np.array("a"), np.ones((2, 2))),
        *(object(), {1, 2}, b"bytes", range(3), lambda: 1, int, jax.numpy.arange(2), 1j),
    )
    return rng.choice(other) if rng.random() < 0.35 else wild.value(rng)


_GOOD: dict[str, tuple[Any, ...]] = {
    "prompts": (_PROMPTS, [np.array([1, 2, 3]), (256, 72, 257)]),
    "max_new_tokens": (6, [0, 6], np.int64(5), np.array([4, 6])),
    "schedule": ("ar", "parallel", "sequential", "flex"),
    "block_size": (None,),
    "confidence_threshold": (0.01, 0.0, 1, np.float32(0.3)),
    "pruning_strategy": ("cumulative_product",),
    "stop_token_ids": (None, [], [258], (3, 4)),
    "temperature": (0.0, 1.0, [0.0, 0.7], 1e-30, 3e38),
    "top_k": (0, 3, [1, 260], 2**31 - 1),
    "top_p": (1.0, 0.3, [1e-30, 1.0]),
    "min_p": (0.0, 1.0, [0.1, 0.2], 1e-45),
    "seed": (0, 2**32 - 1, [7, 7]),
    "row_ids": (None, [0, 1], [2**32 - 1, 5]),
    "sampling": ("coupled",),
    "profile": (None,),
    "attention": ("reference",),
    "mesh": (None,),
}


def _arguments(rng: random.Random, num_wild: int) -> tuple[dict[str, Any], list[str]]:
    """Arguments, and the names of those that were made wild."""
    arguments = {
        name: rng.choice(values)
        for name, values in _GOOD.items()
        if rng.random() < 0.4 or name in ("prompts", "max_new_tokens", "schedule")
    }
    wild_names = rng.sample(sorted(_GOOD), num_wild)
    for name in wild_names:
        arguments[name] = _anything(rng)
        if name in ("prompts", "max_new_tokens", "temperature", "top_k", "stop_token_ids"):
            if rng.random() < 0.5:
                arguments[name] = [_anything(rng), rng.choice(_GOOD[name])]
    return arguments, wild_names


def _generate(rng: random.Random, folder: Path) -> Trial:
    models = tiny.models()
    arguments, wild_names = _arguments(rng, rng.choice((0, 1, 1, 1, 2)))
    target, draft = models.target, models.draft
    if rng.random() < 0.05:
        draft = _anything(rng)
        wild_names.append("draft")
    if rng.random() < 0.05:
        target = _anything(rng)
        wild_names.append("target")
    streams = rng.random() < 0.2
    if streams:
        arguments["steps_per_update"] = rng.choice((1, 3, 100, _anything(rng)))
        wild_names.append("steps_per_update")

    def run() -> None:
        prompts = arguments.pop("prompts")
        if streams:
            *_, out = fd.stream(target, draft, prompts, **arguments)
            del arguments["steps_per_update"]
        else:
            out = fd.generate(target, draft, prompts, **arguments)
        plain = fd.generate(target, None, prompts, **{**arguments, "schedule": "ar"})
        assert out.tokens == plain.tokens and out.finish_reasons == plain.finish_reasons
        budget = arguments["max_new_tokens"]
        budgets = [int(x) for x in np.broadcast_to(budget, len(prompts))]
        for tokens, budget, reason in zip(out.tokens, budgets, out.finish_reasons, strict=True):
            assert len(tokens) == budget or reason != "length"
            assert all(0 <= token < 260 for token in tokens) and len(tokens) <= budget

    call = f"{'stream' if streams else 'generate'}({str(arguments)[:1500]})"
    return Trial(run, tuple(wild_names), call)


@functools.cache
def _engine() -> fd.DecodeEngine:
    models = tiny.models()
    return fd.DecodeEngine(
        models.target, models.draft, batch_size=2, prompt_chunk=32, max_length=96
    )


def _requests(rng: random.Random, folder: Path) -> Trial:
    fields: dict[str, tuple[Any, ...]] = {
        "prompt": ((1, 2, 3), [256, 72, 257], (5,) * 40),
        "max_new_tokens": (0, 1, 6),
        **{name: _GOOD[name][:1] for name in ("temperature", "top_k", "top_p", "min_p", "seed")},
        "stop_token_ids": ((), (258,), [3]),
        "row_id": (0, 9),
    }
    good = {name: rng.choice(values) for name, values in fields.items()}
    broken = dict(good)
    for name in rng.sample(sorted(fields), rng.choice((0, 1, 1, 2))):
        broken[name] = _anything(rng)
    request: Any = fd.Request(**broken) if rng.random() < 0.95 else _anything(rng)

    def run() -> None:
        first, second = fd.Request(**good), fd.Request((7, 8), 5)
        try:
            checked = _engine().check(request)
        except (TypeError, ValueError) as refused:
            try:
                list(_engine().run([request]))
            except type(refused) as error:
                assert str(error) == f"request 0: {refused}"
                raise
            raise AssertionError("run takes what check refuses") from refused
        answers = {one.index: one for one in _engine().run([checked, second, first])}
        assert set(answers) == {0, 1, 2}, "an answer is lost"
        alone = list(_engine().run([fd.Request((7, 8), 5)]))
        assert answers[1].tokens == alone[0].tokens, "a neighbour changed an answer"

    return Trial(run, (*fields, "Request"), f"{str(request)[:1500]}")


def _shapes(rng: random.Random, folder: Path) -> Trial:
    """What a target and a draft look like, and how they are made."""
    target = tiny.models().target
    config: dict[str, Any] = {
        "model_type": "qwen3",
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
    }
    optional = (
        *("rms_norm_eps", "rope_theta", "local_rope_theta", "rope_scaling", "experts"),
        *("partial_rotary_factor", "tie_word_embeddings", "qkv_bias", "qk_norm", "hidden_act"),
        *("query_pre_attn_scalar", "layer_windows", "max_position_embeddings", "eos_token_ids"),
        *("o_bias", "mlp_bias", "output_norms", "zero_centered_norms", "scale_embeddings"),
    )
    draft = {"num_draft_layers": 1, "block_size": 4, "calibration_rank": 2}
    scaling = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    engine = {"batch_size": 2, "schedule": "ar", "max_length": 96, "prompt_chunk": 32}
    key = jax.random.key(0)
    what, call, good, more = rng.choice(
        (
            ("TargetConfig", fd.TargetConfig, config, optional),
            ("TargetConfig", fd.TargetConfig, config, optional),
            ("DraftConfig", fd.DraftConfig, draft, ()),
            ("RopeScaling", fd.RopeScaling, scaling, ("high_freq_factor",)),
            ("init_draft", functools.partial(fd.init_draft, target), {**draft, "rng": key}, ()),
            ("make_mesh", fd.make_mesh, mesh, ()),
            ("parse_mesh", fd.parse_mesh, {"text": "tensor=1"}, ()),
            ("load_target", fd.load_target, {"directory": folder, "dtype": "float32"}, ("mesh",)),
            (
                "load_draft",
                fd.load_draft,
                {"directory": folder, "target": target, "dtype": "float32"},
                (),
            ),
            ("init_target", fd.init_target, {"config": tiny.CONFIG, "rng": key}, ("mesh",)),
            ("save_target", fd.save_target, {"target": target, "directory": folder / "out"}, ()),
            (
                "save_draft",
                fd.save_draft,
                {
                    "draft": tiny.models().draft,
                    "target": target,
                    "directory": folder / "out",
                },
                (),
            ),
            ("load_default", fd.load_default, {"dtype": "float32"}, ()),
            (
                "DecodeEngine",
                fd.DecodeEngine,
                {"target": target, "draft": None, **engine},
                ("block_size", "sampling", "profile", "attention", "mesh", "pruning_strategy"),
            ),
        )
    )
    arguments = dict(good)
    for name in rng.sample([*good, *more], rng.choice((1, 1, 2)) if len(good) > 1 else 1):
        arguments[name] = _anything(rng)

    if isinstance(arguments.get("directory"), str) and what.startswith("save"):
        arguments["directory"] = folder  # Nothing is to be written elsewhere.
    rank = arguments.get("calibration_rank")
    if what == "init_draft" and isinstance(rank, int) and rank > _MOST_WEIGHTS:
        arguments["calibration_rank"] = 2  # It would take the machine's memory, as was asked for.

    def run() -> None:
        made = call(**arguments)
        if isinstance(made, fd.TargetConfig):
            hash(made)
            weights = made.num_layers * made.layer_weights + made.vocab_size * made.hidden_size
            if weights < _MOST_WEIGHTS:
                fd.init_target(made, key)

    return Trial(run, (*arguments, str(folder), "mesh="), f"{what}({str(arguments)[:1500]})")


_MESSAGES = b'[{"role":"user","content":"Hi"}]'
_ATOMS = (
    *(b"null", b"true", b"-1", b"1.5", b"1e999", b"NaN", b"9" * 400, b"9" * 5000, b"4294967296"),
    *(b'""', b'"a"', b'"\\ud800"', b'"\\u0000"', b'"' + b"x" * 2000 + b'"', "é水".encode(), b"[]"),
    *(
        b"[256,72,257]",
        b"[true]",
        b"[-1]",
        b"[260]",
        b"[null]",
        b"{}",
        b'{"a":1}',
        wild.DEEP.encode(),
    ),
    _MESSAGES,
    b'[{"role":"user","content":null}]',
    b'[{"role":"assistant","content":"Hi"}]',
    *(b"[" * depth + b"]" * depth for depth in (99, 101, 940, 975, 990)),
)
_KEYS = (
    *("id", "prompt", "messages", "token_ids", "max_new_tokens", "temperature", "top_k"),
    *("top_p", "min_p", "seed", "line", "error", "", "\\ud800"),
)


def _request_line(rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        whole = (b"", b" ", b"\x00", b"\xef\xbb\xbf", b"{", b"[]", b"null", b"{'a':1}", b"\xc2\x85")
        return rng.choice((*whole, rng.randbytes(9).replace(b"\n", b"")))
    prompts = (b'"prompt":"Hi"', b'"token_ids":[256,72]', b'"messages":' + _MESSAGES)
    parts = [rng.choice(prompts)] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(4)):
        parts.append(b'"%s":%s' % (rng.choice(_KEYS).encode(), rng.choice(_ATOMS)))
    rng.shuffle(parts)
    line = b"{" + b",".join(parts) + b"}"
    return wild.damaged(rng, line).replace(b"\n", b" ") if rng.random() < 0.1 else line


def _decode_file(rng: random.Random, folder: Path) -> Trial:
    source, output = folder / "in.jsonl", folder / "out.jsonl"
    lines = [_request_line(rng) for _ in range(rng.choice((0, 1, 12, 12)))]
    if rng.random() < 0.01:
        lines.append(b'{"prompt":"' + b"x" * 10_000_001 + b'"}')
    source.write_bytes(b"\n".join(lines))
    damage = random.Random(rng.random())
    settings = LineSettings(max_new_tokens=4, seed=3)
    written = [output, stats_path(output), settings_path(output)]

    def answer() -> Any:
        nowhere = Console(file=io.StringIO())
        return decode_file(source, output, tiny.models(), _engine(), settings, nowhere)

    def run() -> None:
        summary = answer()
        wanted = [number for number, _ in read_lines(source)]
        records = [json.loads(line) for line in output.read_text().splitlines()]
        assert [record["line"] for record in records] == wanted, "lines are lost"
        assert summary.num_lines == len(wanted)
        for record in records:
            json.dumps(record, allow_nan=False)
            assert len(record.get("error", "")) <= 310
        whole = [path.read_bytes() for path in written]
        # Cut off anywhere, it goes on to the same answers.
        for path, content in zip(written[:2], whole[:2], strict=True):
            path.write_bytes(content[: damage.randrange(len(content) + 1)])
        answer()
        assert output.read_bytes() == whole[0], "answers changed"
        # What is damaged is refused, or nothing came of it.
        path = damage.choice(written)
        path.write_bytes(wild.damaged(damage, path.read_bytes()))
        answer()
        if path != output:
            assert output.read_bytes() == whole[0], "answers changed"

    return Trial(run, ("out.jsonl",), repr(source.read_bytes()[:2000]))


ENTRIES: list[Entry] = [
    Entry("generate and stream", _generate, CALL_ERRORS),
    Entry("requests of an engine", _requests, CALL_ERRORS),
    Entry("configurations, loading, engines", _shapes, CALL_ERRORS),
    Entry("a file of requests", _decode_file),
]
