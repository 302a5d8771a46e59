"""Which operating system this is. Determined at every call, so that tests can simulate another one."""

import os
import platform
import sys


def is_windows() -> bool:
    """Native Windows; WSL is Linux."""
    return os.name == "nt"


def is_mac() -> bool:
    return sys.platform == "darwin"


def is_wsl() -> bool:
    """Linux inside of Windows: Linux's files and processes, Windows' driver of the GPU."""
    return not is_windows() and "microsoft" in platform.release().lower()


def can_page_gpu_memory() -> bool:
    """Whether the driver moves managed memory out of a GPU that is full, as paged optimizers need it.

    Not on Windows, and so not in WSL either: CUDA on WSL User Guide, Known Limitations for Linux CUDA Applications.
    """
    return not (is_windows() or is_wsl())
