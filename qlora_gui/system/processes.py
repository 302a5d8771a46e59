"""Processes: children that outlive a terminal, how one ended, its priority, and bounds on its memory."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from qlora_gui.system import console
from qlora_gui.system.kind import is_mac, is_windows

SECRETS = ("QLORA_GUI_AUTH", "QLORA_GUI_JUDGE_KEY")
_ROOT = Path(__file__).parents[2]
# Variables that identify one process of a distributed run: its own children must not inherit them.
_OF_SEVERAL = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Windows' own numbers: other systems' modules do not have the names.
_NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200)
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0x8000000)
_BELOW_NORMAL = getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 0x4000)
_NORMAL = getattr(psutil, "NORMAL_PRIORITY_CLASS", 0x20)


def apart() -> dict[str, Any]:
    """Arguments of Popen for a child that neither a Ctrl+C nor the end of this terminal reaches."""
    if is_windows():
        return {"creationflags": _NEW_GROUP | _NO_WINDOW}  # a console of its own, which nobody sees
    return {"start_new_session": True}


def was_killed(code: int | None) -> bool:
    """Whether a child's exit code says that somebody killed it, as Linux does when memory runs out.

    Always False on Windows, where whoever ends a process chooses its exit code.
    """
    return not is_windows() and code == -getattr(signal, "SIGKILL", 9)


def set_niceness(value: int) -> None:
    """Lower the priority of this process (0: not at all, 19: as far as possible), as far as the system allows.

    Some take it back from nobody but an administrator. Windows has classes instead: anything above 0 is *below normal*.
    """
    if is_windows():
        with suppress(OSError, psutil.Error):
            psutil.Process().nice(_BELOW_NORMAL if value > 0 else _NORMAL)
        return
    tasks = Path("/proc/self/task")  # where Linux lists threads, each of which has a niceness of its own
    for thread in [int(path.name) for path in tasks.iterdir()] if tasks.is_dir() else [0]:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, value)
    with suppress(OSError):  # Linux weighs sessions against each other, and a worker has one of its own
        Path("/proc/self/autogroup").write_text(str(value), encoding="ascii")


def limit_memory(size: int) -> bool:
    """Bound the bytes that this process may allocate. Returns whether the system can: Windows and macOS cannot."""
    if resource is None or is_windows() or is_mac():
        return False
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        return True
    except (OSError, ValueError):  # an administrator set a lower one
        return False


def limit_growth(size: int) -> bool:
    """Bound the bytes by which this process may still grow. Returns whether the system can: only Linux reports its size."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        return True
    except (AttributeError, OSError, ValueError):
        return False


def peak_memory() -> int:
    """The most bytes that this process has held in memory at once."""
    with suppress(OSError, IndexError):
        # Not getrusage's on Linux: there a child begins with what its parent held when it forked.
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return 1024 * int(text.partition("VmHWM:")[2].split()[0])
    memory = psutil.Process().memory_info()
    if resource is not None and is_mac():
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes there, and kilobytes elsewhere
    return int(getattr(memory, "peak_wset", memory.rss))


def mapped_files() -> list[str]:
    """The files that this process has mapped, libraries among them; [] where the system does not report them (macOS)."""
    try:
        return [part.path for part in psutil.Process().memory_maps()]
    except (AttributeError, psutil.Error, OSError):
        return []


def cpu_flags() -> list[str]:
    """What the processor can do, in Linux's words, such as avx512_bf16; [] on systems that do not list it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.partition("flags")[2].partition("\n")[0].split()


def can_begin_again() -> bool:
    """Whether this process can be begun again in its own place. Windows would start a second one and leave the terminal."""
    return not is_windows()


def begin_again(words: Sequence[str]) -> NoReturn:
    """Begin this process again with another command line; the environment is that of now."""
    sys.stdout.flush()
    os.execv(sys.executable, list(words))


def boot() -> str:
    """An identifier of this boot of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(round(psutil.boot_time()))


def table() -> str:
    """The process table in which a process number is valid: each container of a machine has its own. "" where there is
    only one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def environment() -> dict[str, str]:
    """The environment of a child: it finds this package from any working directory, prints at once, has no secret of
    the page's."""
    several = _OF_SEVERAL if "TORCHELASTIC_RUN_ID" in os.environ else ()
    mine = {name: value for name, value in os.environ.items() if name not in SECRETS and not name.startswith(several)}
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        mine
        | console.environment()
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
    )
