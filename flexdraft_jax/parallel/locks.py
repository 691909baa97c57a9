"""Files that one run at a time may write: the lock of a file keeps a second one away.

A lock ends with its process, however that ends. Nothing has to be cleaned up.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flexdraft_jax.parallel.processes import gather, is_main


def take_lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Locks a file until it is closed; False where somebody else holds the lock.

    A warning says it where there are no locks: on Windows, and on some file systems of a network.

    Args:
        file: open.
        wait: until nobody else holds it.
    """
    try:
        import fcntl  # Windows has none.

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        warnings.warn(
            f"{file.name} can't be locked here ({error}): start no second run on it", stacklevel=2
        )
    return True


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock of a file, which is made if need be, and stays.

    Args:
        path: of it; its folder is made as well.
        what: is to be written under the lock, for the error.

    Raises:
        ValueError: another run holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if not take_lock(file):
            raise ValueError(f"{what}: another run is writing there")
        yield


@contextlib.contextmanager
def locked_by_main(path: Path, what: str) -> Iterator[None]:
    """`locked`, once for all processes of a run, which call this alike: process 0 does it.

    Raises:
        ValueError: another run holds the lock.
    """
    refused: Exception | None = None
    with contextlib.ExitStack() as stack:
        if is_main():
            try:
                stack.enter_context(locked(path, what))
            except (OSError, ValueError) as error:
                refused = error
        if refused := gather(refused)[0]:  # Others would wait for process 0.
            raise refused
        yield
