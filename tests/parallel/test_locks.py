"""One run at a time."""

import builtins
import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from flexdraft_jax.parallel.locks import locked, locked_by_main, take_lock

_HOLD = """
import pathlib, sys
from flexdraft_jax.parallel.locks import locked
with locked(pathlib.Path(sys.argv[1]), "this"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("lock", [locked, locked_by_main])
def test_a_lock_ends_with_its_run(lock, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path, "this"), pytest.raises(ValueError, match="^that: another run is writing there"):
        with lock(path, "that"):
            pass
    with pytest.raises(KeyboardInterrupt), lock(path, "this"):
        raise KeyboardInterrupt
    with lock(path, "that"):
        pass


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with path.open("ab") as file:
            assert not take_lock(file)
        other.kill()
    with path.open("ab") as file:
        assert take_lock(file, wait=True)


def test_where_there_are_no_locks_a_warning_says_so(tmp_path: Path, monkeypatch) -> None:
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        with pytest.warns(UserWarning, match="lock can't be locked here .*No locks available"):
            with locked(tmp_path / "lock", "this"):
                pass
    find = builtins.__import__

    def no_fcntl(name, *arguments):
        if name == "fcntl":
            raise ModuleNotFoundError("No module named 'fcntl'")
        return find(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", no_fcntl)
    with pytest.warns(UserWarning, match="can't be locked here .*No module named 'fcntl'"):
        with locked(tmp_path / "lock", "this"):
            pass
