"""The resident memory of this process, as Linux counts it."""

import ctypes
import re


def resident_bytes() -> int:
    """What the process holds now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it held since `restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> bool:
    """Gives unused memory back and counts the peak anew.

    Returns:
      False where the system does not allow it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim:
        trim(0)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(rf"^{field}:\s+(\d+) kB$", file.read(), re.M)
    return int(found[1]) * 1024 if found else 0
