"""What nvidia-smi reports: the GPUs of this machine in the order of their buses, and who holds their memory."""

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

_WSL = "/usr/lib/wsl/lib"  # where Windows puts nvidia-smi; not on PATH


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi lists it. Sizes in bytes, None where it says [N/A] (MIG, unified memory).

    `uuid` and `bus` (domain:bus:device.function) are lower case and "" where not reported, `driver` is a version like 580.82.07.
    """

    name: str
    total: int | None
    free: int | None
    uuid: str = ""
    bus: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Holder:
    """A process that holds GPU memory, in bytes."""

    pid: int
    name: str
    bytes: int

    def as_dict(self) -> dict[str, int | str]:
        """Plain values for an event."""
        return asdict(self)


def gpus() -> list[Gpu]:
    """The GPUs in the order of their buses; [] where nvidia-smi is missing or does not answer."""
    listed = []
    for line in _ask("--query-gpu=name,memory.total,memory.free,uuid,pci.bus_id,driver_version"):
        name, *more = (part.strip() for part in line.split(","))
        if len(more) >= 2:
            uuid, bus, driver = (*(_strip_unavailable(text) for text in more[2:5]), "", "", "")[:3]
            listed.append(Gpu(name, _bytes(more[0]), _bytes(more[1]), uuid.lower(), _bus(bus), driver))
    return listed


def holders() -> list[Holder]:
    """The processes that hold GPU memory, the largest first, as far as nvidia-smi can see them."""
    found = []
    for line in _ask("--query-compute-apps=pid,process_name,used_memory"):
        pid, _, rest = line.partition(",")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdigit() and used.strip().isdigit():
            found.append(Holder(int(pid), name.strip(), int(used) * 2**20))
    return sorted(found, key=lambda holder: -holder.bytes)


def driver() -> str:
    """The version of the kernel driver, also without nvidia-smi; "" where none is loaded."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _strip_unavailable(text: str) -> str:
    return "" if text.startswith("[") else text


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) * 2**20 if mebibytes.isdigit() else None


def _bus(text: str) -> str:
    """`00000000:17:00.0` -> `0000:17:00.0`, as torch and /sys spell it."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else ""


def _ask(query: str) -> list[str]:
    """The lines of nvidia-smi's output; [] where it is missing or does not answer in time."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=_WSL)
    if program is None:
        return []
    command = [program, query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=5, check=True, env=os.environ
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
