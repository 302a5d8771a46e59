"""What a result was measured on: the hardware and the versions, for the JSON files of the benchmarks."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl")


def hardware() -> dict[str, Any]:
    """The processor with what it has for bf16, and how many cores this process may use; the GPU if there is one."""
    told = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", told)
    flags = re.search(r"flags\s*:\s*(.+)", told)
    have = set(flags[1].split()) if flags else set()
    return {
        "processor": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "bf16": {flag: flag in have for flag in ("avx512_bf16", "amx_bf16")},
    }


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
