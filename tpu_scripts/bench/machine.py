"""What the figures were measured on."""

import os
import platform
import re
from importlib import metadata

_PACKAGES = (
    "tensorflow",
    "keras",
    "tf_keras",
    "dm-sonnet",
    "jax",
    "jaxlib",
    "optax",
    "torch",
    "numpy",
)


def describe(threads: int) -> dict[str, object]:
    """The machine, the threads that each optimizer has, the versions."""
    memory = _field("/proc/meminfo", r"MemTotal:\s+(\d+) kB")
    return {
        "cpu": _field("/proc/cpuinfo", r"model name\s*:\s*(.*)"),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(int(memory) / 2**20, 1) if memory else None,
        "system": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {"python": platform.python_version()} | _versions(),
    }


def available_bytes() -> int:
    """The memory that new processes can have."""
    found = _field("/proc/meminfo", r"MemAvailable:\s+(\d+) kB")
    return int(found or 0) * 1024


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _field(path: str, pattern: str) -> str | None:
    with open(path, encoding="utf-8") as file:
        found = re.search(pattern, file.read())
    return found[1].strip() if found else None
