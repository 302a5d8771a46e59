"""The program as people run it from a terminal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def headless(folder: Path, *words: str, seconds: float = 2400) -> str:
    command = [sys.executable, str(ROOT / "app.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluated(folder: Path, *words: str) -> list[dict[str, Any]]:
    headless(folder, "--headless-evaluate", "--max-new-tokens", "64", "--adapters", *words, "--out", "out.json")
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["evaluations"]
    return found
