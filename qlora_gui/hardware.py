"""What this machine computes with, found out without importing torch."""

import shutil
import subprocess
import time
from dataclasses import asdict, dataclass

import psutil

_CACHE_SECONDS = 3.0


@dataclass(frozen=True)
class Device:
    """A device for training. Sizes in bytes."""

    name: str
    kind: str  # "cuda" or "cpu"
    total: int
    free: int

    def __str__(self) -> str:
        return f"{self.name} · {self.free / 2**30:.1f} of {self.total / 2**30:.1f} GB free"


@dataclass(frozen=True)
class Holder:
    """A process that holds GPU memory, in bytes."""

    pid: int
    name: str
    bytes: int

    def as_dict(self) -> dict[str, int | str]:
        """Plain values for an event."""
        return asdict(self)


def holders() -> list[Holder]:
    """The processes that hold GPU memory, the largest first, as far as nvidia-smi can see them."""
    found = []
    for line in _ask("--query-compute-apps=pid,process_name,used_memory"):
        pid, name, used = (part.strip() for part in (*line.split(",", 1)[:1], *line.split(",", 1)[1].rsplit(",", 1)))
        if pid.isdigit() and used.isdigit():
            found.append(Holder(int(pid), name, int(used) * 2**20))
    return sorted(found, key=lambda holder: -holder.bytes)


_last: tuple[float, list[Device]] | None = None


def devices() -> list[Device]:
    """The GPUs that nvidia-smi lists, or else the CPU. Asked again after a few seconds."""
    global _last  # a cache of what the machine says, never of what a run does
    now = time.monotonic()
    if _last is None or now - _last[0] > _CACHE_SECONDS:
        _last = (now, _gpus() or [_cpu()])
    return _last[1]


def _gpus() -> list[Device]:
    found = []
    for line in _ask("--query-gpu=name,memory.total,memory.free"):
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        if total.isdigit() and free.isdigit():
            found.append(Device(name, "cuda", int(total) * 2**20, int(free) * 2**20))
    return found


def _ask(query: str) -> list[str]:
    """Lines of nvidia-smi's answer; none where it is not there or says nothing in time."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _cpu() -> Device:
    memory = psutil.virtual_memory()
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return Device(f"CPU, {cores} cores", "cpu", memory.total, memory.available)
