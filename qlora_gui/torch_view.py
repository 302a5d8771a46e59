"""Which devices torch itself sees: asked once, in a child process that imports it, and stored in the cache folder.

The page's process never imports torch, and nvidia-smi may list what torch cannot use, in another order, or be missing.
"""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.system import files, kind

MODULE = "qlora_gui.models.ask_torch"
_PATIENCE = 180.0  # seconds: torch may come from a cold disk
_AGAIN = 60.0  # seconds until a child that failed is tried again
_DOUBTFUL = 600.0  # and until torch is asked again about a GPU that it does not use
_MOST_KEPT = 8
# What decides which devices torch finds.
_ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "ONEAPI_DEVICE_SELECTOR",
    "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
)


@dataclass(frozen=True)
class Card:
    """One accelerator as torch numbers it. Sizes in bytes; `free` is of the moment when torch was asked.

    `uuid` and `bus` are as in `nvidia.Gpu`. `capability` is CUDA's, like "7.5"; `oldest` is the lowest one that this torch
    has kernels for where that is above it, `newest` the highest one where none of its kernels run on it: then torch
    cannot compute on the card. "" elsewhere.
    """

    number: int
    name: str
    total: int
    free: int
    uuid: str = ""
    bus: str = ""
    capability: str = ""
    oldest: str = ""
    newest: str = ""

    @property
    def usable(self) -> bool:
        """Whether the installed torch has kernels for it."""
        return not (self.oldest or self.newest)


@dataclass(frozen=True)
class View:
    """What torch says. `kind` is torch's word for the accelerator (cuda, xpu, mps), "" where it sees none.

    `version` and `built_for` ("CUDA 13.0", "ROCm 6.4", "XPU", "CPU") are of the installed torch, `dtype` what is
    computed in on that device. `warning` is what torch warned of meanwhile, `error` why it could not be asked.
    """

    kind: str = ""
    cards: tuple[Card, ...] = ()
    version: str = ""
    built_for: str = ""
    dtype: str = ""
    warning: str = ""
    error: str = ""
    asked: float = field(default=0.0, compare=False)  # seconds since the epoch

    @property
    def usable(self) -> tuple[Card, ...]:
        """The cards that torch can compute on."""
        return tuple(card for card in self.cards if card.usable)

    @property
    def is_rocm(self) -> bool:
        return self.built_for.startswith("ROCm")


def parse(value: dict[str, Any]) -> View:
    """A View from JSON. Raises TypeError or KeyError for anything else."""
    return View(**{**value, "cards": tuple(Card(**card) for card in value["cards"])})


def installed() -> View:
    """What the files of the installed torch say without importing it: version and build, but no devices."""
    text = _version_file()
    if not text:
        return View(error="torch is not installed.")
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        values[name.partition(":")[0].strip()] = value.strip().strip("'\"")
    return View(version=values.get("__version__", ""), built_for=_build(values))


def _build(values: dict[str, str]) -> str:
    for name, word in (("cuda", "CUDA "), ("hip", "ROCm "), ("xpu", "XPU ")):
        if values.get(name, "None") not in ("None", ""):
            return word + (".".join(values[name].split(".")[:2]) if name != "xpu" else "")
    return "Metal" if kind.is_mac() else "CPU"


@lru_cache(maxsize=1)
def _version_file() -> str:
    try:
        spec = importlib.util.find_spec("torch")  # finds it without importing it
        origin = Path(spec.origin) if spec and spec.origin else None
        return (origin.parent / "version.py").read_text(encoding="utf-8") if origin else ""
    except (OSError, ValueError, ImportError):
        return ""


def numbering() -> dict[str, str]:
    """The variable by which CUDA numbers GPUs as nvidia-smi does, by their buses and not the fastest first.

    {} where the environment numbers them already: those numbers keep their meaning.
    """
    named = os.environ.keys() & {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"}
    return {} if named else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Asking:
    """One question to torch at a time; its answer is stored in memory, and in `file` for later processes."""

    def __init__(self, run: Callable[[Sequence[str]], str] | None = None) -> None:
        self._run = run or _run
        self._lock = threading.Lock()
        self._answers: dict[str, View] = {}
        self._threads: dict[str, threading.Thread] = {}

    def known(self, cards: Sequence[str]) -> View | None:
        """Torch's latest answer on a machine with these GPUs (any names for them) and this environment; None where it has
        not been asked."""
        key = _key(cards)
        if key not in self._answers and (stored := _load_answers().get(key)):
            with suppress(TypeError, KeyError, AttributeError):
                self._answers[key] = parse(stored)
        return self._answers.get(key)

    def in_background(self, cards: Sequence[str], fresh: bool = False) -> threading.Thread | None:
        """Have torch asked; returns the thread that does it, None where the answer is known and `fresh` is not wanted.

        An answer that leaves a GPU unused is asked for again after a while: a driver may have come back meanwhile.
        """
        answer = self.known(cards)
        if not fresh and answer is not None and not _is_outdated(answer, cards):
            return None
        key = _key(cards)
        with self._lock:
            thread = self._threads.get(key)
            if thread is None or not thread.is_alive():
                thread = threading.Thread(target=self._ask, args=(key, cards), daemon=True)
                self._threads[key] = thread
                thread.start()
        return thread

    def _ask(self, key: str, cards: Sequence[str]) -> None:
        view = replace(_ask_torch(self._run), asked=time.time())
        self._answers[key] = view
        if not _is_doubtful(view, cards):
            _store_answer(key, view)


def _is_doubtful(view: View, cards: Sequence[str]) -> bool:
    """Whether there is, or may be, a GPU that torch does not use: that can change without a change of the key."""
    may_be_there = any(cards) or view.built_for.startswith(("ROCm", "XPU"))
    return not view.usable and bool(view.error or view.warning or may_be_there)


def _is_outdated(view: View, cards: Sequence[str]) -> bool:
    return _is_doubtful(view, cards) and time.time() - view.asked > (_AGAIN if view.error else _DOUBTFUL)


def file() -> Path:
    """Where answers are stored: JSON, by a digest of what they depend on."""
    return hub.cache_dir() / "torch_view.json"


def _ask_torch(run: Callable[[Sequence[str]], str]) -> View:
    base = installed()
    try:
        lines = run([sys.executable, "-m", MODULE]).splitlines()
        return parse(json.loads(lines[-1]))
    except subprocess.TimeoutExpired:
        return replace(base, error=f"torch did not answer within {_PATIENCE:.0f} seconds.")
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        return replace(base, error=f"torch cannot be used here: {last[0]}")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return replace(base, error=f"torch could not be asked: {error}")


def _run(command: Sequence[str]) -> str:
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = numbering() | os.environ | {"PYTHONPATH": paths, "PYTHONUTF8": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_PATIENCE,
        check=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout


def _key(cards: Sequence[str]) -> str:
    """A digest of what the answer depends on; a home directory may be shared by machines, and names may be private."""
    parts = [_version_file(), sys.prefix, platform.node(), *cards]
    parts += [f"{name}={os.environ.get(name)}" for name in _ENVIRONMENT]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _load_answers() -> dict[str, Any]:
    try:
        answers = json.loads(file().read_text(encoding="utf-8"))
        return answers if isinstance(answers, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _store_answer(key: str, view: View) -> None:
    """Store an answer. A cache folder that cannot be written to only means that torch is asked again."""
    others = {name: value for name, value in _load_answers().items() if name != key}
    newest = dict(list(others.items())[1 - _MOST_KEPT :]) | {key: asdict(view)}
    aside = file().with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(newest), encoding="utf-8")
        files.replace(aside, file())
