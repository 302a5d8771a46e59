"""What can be learned about the machine without computing anything: devices, driver, memory, disk, hub, browser."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil

from qlora_gui import hardware, hub, nvidia
from qlora_gui.check.lines import Line
from qlora_gui.formatting import gigabytes
from qlora_gui.runs.store import RunStore
from qlora_gui.system import kind

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "gradio")
_LEAST_DISK = 5 << 30  # bytes: a small base, its 4-bit form, some checkpoints
_LEAST_GPU = 0.5  # share of its memory that should be free
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "microsoft-edge", "brave-browser", "safari")


def lines(store: RunStore) -> Iterator[Line]:
    """One line each; those that wait for something come last."""
    yield _system()
    yield from _devices()
    yield from _holders()
    yield from _disks(store)
    yield _hub()
    yield _browser()


def _system() -> Line:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            return Line("system", "failed", f"{package} is not installed.", "Install as the README says.")
    wsl = " under WSL" if kind.is_wsl() else ""
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}{wsl}"
    text = f"{where}; {', '.join(versions)}."
    if not (3, 10) <= sys.version_info < (3, 14):
        return Line("system", "warning", text, "Python 3.10 to 3.13 is what this program is tested with.")
    return Line("system", "ok", text)


def _devices() -> Iterator[Line]:
    hardware.settle(anew=True)
    seen, trouble, remark = hardware.view(), hardware.trouble(), hardware.remark()
    version = f"torch {seen.version}, built for {seen.built_for}" if seen and seen.version else "torch"
    driver = next((gpu.driver for gpu in nvidia.gpus() if gpu.driver), "") or nvidia.driver()
    driver_text = f"; NVIDIA driver {driver}" if driver else ""
    if seen is not None and seen.error:
        yield Line("torch", "failed", seen.error, "Install as the README says.")
    elif trouble:
        yield Line("torch", "failed", f"{version}{driver_text}. {trouble}")
    else:
        yield Line("torch", "warning" if remark else "ok", f"{version}{driver_text}.", remark)
    for device in hardware.devices():
        what = "GPU" if device.kind != "cpu" else "Device"
        number = f" {device.number}" if device.kind in ("cuda", "xpu") else ""
        yield Line("device", "ok", f"{what}{number}: {device}.")


def _holders() -> Iterator[Line]:
    """Who holds the memory that is not free."""
    for device in hardware.devices():
        if device.kind == "cpu" or device.free >= _LEAST_GPU * device.total:
            continue
        fix = "End what you do not need, or choose another GPU with gpu."
        yield Line("memory", "warning", f"Less than half of GPU {device.number}'s memory is free.", fix)
    held = hardware.holders()
    if held:
        named = ", ".join(f"{Path(holder.name).name} ({gigabytes(holder.bytes)})" for holder in held[:5])
        yield Line("holders", "ok", f"GPU memory is held by {named}.")
    memory = psutil.virtual_memory()
    if memory.available < 4 * 2**30:
        largest = max(psutil.process_iter(["name", "memory_info"]), key=_resident, default=None)
        name = f"; the largest program is {largest.info['name']}" if largest else ""
        fix = "End what you do not need."
        yield Line("ram", "warning", f"Only {gigabytes(memory.available)} of main memory are free{name}.", fix)


def _resident(process: psutil.Process) -> int:
    memory = process.info["memory_info"]
    return memory.rss if memory else 0


def _disks(store: RunStore) -> Iterator[Line]:
    """Room for runs, for the cache, and for bases from the hub."""
    places = {"runs": store.root, "cache": hub.cache_dir(), "bases of the hub": _hub_cache()}
    by_device: dict[int, tuple[list[str], int]] = {}
    for name, place in places.items():
        there = next((folder for folder in (place, *place.parents) if os.path.lexists(folder)), Path("/"))
        if not os.path.isdir(there):
            what = "a link that leads to nothing" if there.is_symlink() else "no folder"
            yield Line("disk", "failed", f"The folder of {name} cannot be made: '{there}' is {what}.", "Move it away.")
            continue
        if not os.access(there, os.W_OK | os.X_OK):
            fix = "Make it writable, or name another (--adapters-dir, QLORA_GUI_CACHE, HF_HOME)."
            yield Line("disk", "failed", f"The folder of {name} cannot be written to.", fix)
            continue
        device, free = there.stat().st_dev, shutil.disk_usage(there).free
        by_device.setdefault(device, ([], free))[0].append(name)
    for names, free in by_device.values():
        text = f"{gigabytes(free)} of disk are free for {', '.join(names)}."
        small = "A base and its 4-bit form need about twice the size of its files." if free < _LEAST_DISK else ""
        yield Line("disk", "warning" if small else "ok", text, small)


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _hub() -> Line:
    if hub.answers():
        return Line("hub", "ok", "The model hub answers.")
    if os.environ.get("HF_HUB_OFFLINE"):
        text = "HF_HUB_OFFLINE is set: only bases and data that are on this machine can be used."
        return Line("hub", "warning", text, "Unset it to load from the hub.")
    fix = "Check network and proxy; bases and data that are on this machine work."
    return Line("hub", "warning", "The model hub does not answer.", fix)


def _browser() -> Line:
    browser = next((name for name in _BROWSERS if shutil.which(name)), None)
    if browser or kind.is_mac() or kind.is_windows():
        return Line("browser", "ok", f"A browser for the page is here{f' ({browser})' if browser else ''}.")
    fix = "Open the page from another machine: ssh -L 7860:127.0.0.1:7860, or --share."
    return Line("browser", "warning", "No browser is on this machine.", fix)
