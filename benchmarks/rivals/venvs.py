"""The rivals' environments, made where they are absent, under this program's cache folder."""

import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from qlora_gui import hub

TRL = "trl==1.16.0"
LLAMAFACTORY = "llamafactory==0.9.5"


def trl() -> Path:
    """A python that has TRL and otherwise exactly this environment's packages."""
    return _made(TRL, _with_trl)


def llamafactory() -> Path:
    """A python with LLaMA-Factory and the versions it asks for, but this environment's torch.

    A fresh install of it does not start on a CPU machine: torchvision and torchaudio are of another torch. Rows of
    text need neither, so the one is removed and the other is an empty module.
    """
    return _made(LLAMAFACTORY, _with_llamafactory)


def _made(package: str, fill: object) -> Path:
    folder = hub.cache_dir() / "benchmarks" / package.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "made"
    if not done.exists():
        print(f"Making an environment with {package} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        fill(python)  # type: ignore[operator]
        done.touch()
    return python


def _with_trl(python: Path) -> None:
    (_site_packages(python) / "this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _pip(python, "install", "--no-deps", TRL)


def _with_llamafactory(python: Path) -> None:
    torch = "torch==" + metadata.version("torch").partition("+")[0]
    _pip(python, "install", LLAMAFACTORY, "bitsandbytes==" + metadata.version("bitsandbytes"), torch)
    _pip(python, "install", "--no-deps", torch)
    _pip(python, "uninstall", "--yes", "torchvision", "torchaudio")
    (_site_packages(python) / "torchaudio.py").write_text("")


def _site_packages(python: Path) -> Path:
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())


def _pip(python: Path, *words: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)
