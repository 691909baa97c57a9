"""How much memory a call took at most, as far as the machine tells."""

import pathlib
import re
import sys
from collections.abc import Callable

import jax

try:
    import resource
except ImportError:  # Windows has none.
    resource = None  # type: ignore[assignment]

_STATUS = pathlib.Path("/proc/self/status")  # Linux alone has these two.
_CLEAR = pathlib.Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


def peak_source() -> str:
    """What `peak_bytes` tells about, for a report."""
    if _device_peak() is not None:
        return "the device's, of the run so far"
    if _STATUS.exists() and _CLEAR.exists():
        return "the process's, all that it holds included"
    return "the process's, of the run so far"


def peak_bytes(call: Callable[[], object], on_device: bool = True) -> int | None:
    """Calls, and tells the peak of memory.

    A device counts from the start of the process, so that a small call behind a large one shows the
    large one's peak. The process's own peak is of this call alone where the system can forget
    earlier ones.

    Args:
        call: to measure.
        on_device: whether it works on JAX's device; the peak of the process is told otherwise.
    """
    try:
        _CLEAR.write_text(_FORGET_PEAK)
    except OSError:
        pass
    call()
    device = _device_peak()
    if device is not None:
        return device if on_device else None
    return _process_peak()


def _device_peak() -> int | None:
    """Of the fullest device of this process; None where they don't count, as CPUs."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None)


def _process_peak() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    if resource is None:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
