"""Breaks every public entry in thousands of ways, and counts what came of it.

    python tests/fuzz --seconds 300 --seed 0
    python tests/fuzz --only "config.json of a target" --tries 1000

What goes in is made from good inputs with something wrong in them, and is sometimes good. It is
right to answer as for the good input, and to refuse with an error of the kinds that scripts show
as one line, which names the file or field. Everything else is a fault: another error, an answer
that differs, or none within five minutes. The exit status is 1 where there are any; each is
printed with the seed that makes it again.
"""

import argparse
import contextlib
import io
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Before JAX is imported anywhere.
os.environ["FLEXDRAFT_JAX_PROFILES"] = os.devnull
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from entries import ENTRIES, Entry  # noqa: E402

_TIME_LIMIT = 300


class _TooSlow(BaseException):
    """No answer in time."""


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _TIME_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(entry: Entry, seed: str, folder: Path, refusals: Counter[str]) -> str:
    """One try: "accepted", "refused", or a report of a fault. Counts the errors of refusals."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        trial = entry.make(random.Random(seed), folder)
    try:
        with _time_limit(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial.run()
    except entry.errors as error:
        message = str(error)
        if any(name in message for name in trial.names):
            refusals[message.replace(str(folder), "FOLDER")[:100]] += 1
            return "refused"
        return f"{trial.what}: does not say what is wrong: {type(error).__name__}: {message[:500]}"
    except _TooSlow:
        return f"{trial.what}: no answer within {_TIME_LIMIT} seconds"
    except (Exception, SystemExit) as error:
        where = "".join(traceback.format_exception(error)[-4:])
        return f"{trial.what}: {type(error).__name__}\n{where[-1500:]}"
    return "accepted"


def _squeezed(text: str) -> str:
    """Without long runs of one character or digit."""
    return re.sub(r"(.)\1{20,}", r"\1\1...", text)


def main() -> None:
    """Fuzzes, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all entries together")
    parser.add_argument("--tries", type=int, default=None, help="of each entry, whatever they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", help="one fault, by its seed, such as '0 a draft 17'")
    parser.add_argument("--only", default="", help="parts of entries' names, with | between them")
    parser.add_argument("--most_faults", type=int, default=5, help="that are printed of an entry")
    parser.add_argument("--refusals", action="store_true", help="print the usual errors")
    args = parser.parse_args()
    if args.again is None:
        named = f"--only={args.only!r}: must be part of"
        entries = [e for e in ENTRIES if any(part in e.name for part in args.only.split("|"))]
    else:
        named = f"--again={args.again!r}: must be a number, a name and a number, the name"
        entries = [e for e in ENTRIES if re.fullmatch(rf"\d+ {re.escape(e.name)} \d+", args.again)]
        args.tries = 1
    if not (args.tries is None or args.tries >= 1) or not args.seconds > 0:
        parser.error("--tries and --seconds must be positive: nothing would be tried")
    if not entries:
        parser.error(f"{named} one of {[e.name for e in ENTRIES]}")
    logging.disable(logging.CRITICAL)  # Libraries speak of what is wrong, too.
    rows = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        for entry in entries:
            refusals: Counter[str] = Counter()
            counts = {"accepted": 0, "refused": 0, "faults": 0}
            tries, end = 0, time.monotonic() + args.seconds / len(entries)
            while tries < args.tries if args.tries is not None else time.monotonic() < end:
                seed = args.again or f"{args.seed} {entry.name} {tries}"
                outcome = attempt(entry, seed, Path(scratch) / "folder", refusals)
                tries += 1
                if outcome in counts:
                    counts[outcome] += 1
                    continue
                counts["faults"] += 1
                if counts["faults"] <= args.most_faults:
                    print(f"FAULT {seed!r}: {_squeezed(outcome)}\n", flush=True)
            rows.append((entry.name, tries, *counts.values()))
            print(
                f"{entry.name:34} {tries:7} tried {counts['accepted']:7} accepted "
                f"{counts['refused']:7} refused {counts['faults']:5} faults",
                flush=True,
            )
            if args.refusals:
                print(*(f"  {n} {message!r}" for message, n in refusals.most_common(12)), sep="\n")
    tried, faults = (sum(row[i] for row in rows) for i in (1, 4))
    print(f"{tried:,} tried, {faults:,} faults, seed {args.seed}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
