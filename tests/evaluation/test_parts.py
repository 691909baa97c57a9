"""Shares of a file of requests, and the parts that come of them."""

import json
from pathlib import Path

from flexdraft_jax.data.conversations import read_lines
from flexdraft_jax.evaluation import parts
from flexdraft_jax.evaluation.parts import join_parts, part_path, write_share


def test_shares_are_all_lines_once_with_their_numbers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "_PIECE_BYTES", 7)  # Lines come in pieces.
    whole = tmp_path / "in.jsonl"
    whole.write_bytes(
        b"\xef\xbb\xbf" + b"\n".join([b"a" * 20, b"", b"b", b"c" * 7, b"d" * 14, b"e"])
    )
    shares = [write_share(whole, tmp_path / "out", i, 3) for i in range(3)]
    lines = [list(read_lines(share)) for share in shares]
    assert [[number for number, _ in of_one] for of_one in lines] == [[1, 4], [5], [3, 6]]
    assert sorted(sum(lines, [])) == list(read_lines(whole))


def test_parts_are_joined_in_the_order_of_the_input(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for index, numbers in enumerate([[1, 10], [2, 5], []]):
        part = part_path(output, index, 3)
        text = "".join(json.dumps({"line": number}) + "\n" for number in numbers)
        part.write_text(text)
        part.with_name(f"{part.name}.stats.jsonl").write_text(text)
    join_parts(output, 3)
    for path in (output, tmp_path / "out.jsonl.stats.jsonl"):
        assert [json.loads(x)["line"] for x in path.read_text().splitlines()] == [1, 2, 5, 10]
