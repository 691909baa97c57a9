"""Wild values, and small damage to JSON, to bytes and to folders."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e-50, 1e39, 1e308, 10**30, -(10**30), 10**400, 2**31 - 1),
    *(2**31, 2**32 - 1, 2**32, 2**63, float("nan"), float("inf"), -float("inf"), True, False),
)
TEXTS = ("", " ", "a", "1", "null", "é水🙂", "\x00", "\ud800", "x" * 3000, "../..", "NaN", "[1]")
# Nested deeper than Python's own limit, and an integer with more digits than it reads.
DEEP = "[" * 100_000 + "]" * 100_000
_TOO_MUCH = {'"@deep@"': DEEP, '"@long@"': "9" * 5000}


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def value(rng: random.Random) -> Any:
    """Anything that JSON can say, and NaN."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(TEXTS)
    if kind == 6:
        return rng.choice((None, None, None, "@deep@", "@long@"))
    if kind == 7:
        return [value(rng) for _ in range(rng.randrange(3))]
    if kind == 8:
        return {str(rng.choice(TEXTS)): value(rng) for _ in range(rng.randrange(3))}
    return nested(rng.choice((3, 90, 250)))


def changed(rng: random.Random, document: Any, known: tuple[str, ...] = ()) -> Any:
    """A copy of a JSON document with one to three places changed.

    Args:
        rng: of the choices.
        document: to change.
        known: names of fields that may be added.
    """
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _changed_once(rng, document, known)
    return document


def _changed_once(rng: random.Random, document: Any, known: tuple[str, ...]) -> Any:
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return value(rng)
    holder, key = rng.choice(places)
    if known and isinstance(document, dict) and rng.random() < 0.15:
        holder, key = document, rng.choice(known)
        holder[key] = value(rng)
    kind, old = rng.randrange(8), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    elif kind == 2:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place])) if _has(other, place) else None
    elif kind == 3 and isinstance(old, int | float):
        near = (old + 1, old - 1, -old, old * 2, old // 2, old * 1_000_003, str(old), [old])
        holder[key] = rng.choice((*near, float(old)) if abs(old) < 1e300 else near)
    elif kind == 4:
        holder[key] = rng.choice(([old], {"a": old}, str(old)))
    else:
        holder[key] = value(rng)
    return document


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _places(document: Any) -> Any:
    """Every place of a document: what holds it, and the key there."""
    items: Any = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document)
    for key, inner in items:
        yield document, key
        yield from _places(inner)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The bytes with a few flipped, cut, put in or said twice."""
    kind, place = rng.randrange(8), rng.randrange(len(content) + 1)
    if kind < 3 and content:
        array = bytearray(content)
        for _ in range(rng.choice((1, 1, 4))):
            array[rng.randrange(len(array))] ^= 1 << rng.randrange(8)
        return bytes(array)
    if kind == 3:
        return content[:place]
    if kind == 4:
        return content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place:]
    if kind == 5:
        return content[:place] + content[place + rng.randrange(1, 30) :]
    if kind == 6:
        return content + content[max(0, place - 50) : place]
    return rng.choice((b"", b"\n", b"\x00" * 64, b"{}", b"[]", b"null", DEEP.encode(), b"\xff\xfe"))


def as_json(document: Any) -> str:
    """As text, also what Python would not write."""
    text = json.dumps(document)
    for mark, much in _TOO_MUCH.items():
        text = text.replace(mark, much)
    return text


def write_json(rng: random.Random, path: Path, document: Any, known: tuple[str, ...] = ()) -> None:
    """Writes a document changed, or the whole one damaged."""
    if rng.random() < 0.75:
        path.write_text(as_json(changed(rng, document, known)))
    else:
        path.write_bytes(damaged(rng, json.dumps(document, indent=1).encode()))


def damage_folder(rng: random.Random, folder: Path, files: list[Path] | None = None) -> str:
    """Damages one file of a folder, or takes it away; says what was done."""
    files = files or sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    name = path.relative_to(folder)
    kind = rng.randrange(8)
    if kind == 0:
        path.unlink()
        return f"{name} deleted"
    if kind == 1:
        other = rng.choice(files)
        if other != path:
            shutil.copyfile(other, path)
        return f"{name} is {other.relative_to(folder)}"
    if kind == 2:
        path.unlink()
        path.mkdir()
        return f"{name} is a folder"
    path.write_bytes(damaged(rng, path.read_bytes()))
    return f"{name} damaged"


def copy(source: Path, folder: Path) -> None:
    """Copies a folder; all of the copy may be written."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):
        os.chmod(path, 0o755 if path.is_dir() else 0o644)
