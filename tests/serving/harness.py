"""EleutherAI's evaluation harness, in an environment of its own beside the tests' packages: what asks an endpoint in earnest."""

import json
import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from qlora_gui import hub
from tests.conftest import need

VERSION = "0.4.13"
_PACKAGES = [f"lm_eval[api]=={VERSION}", "tiktoken"]


@cache
def _python() -> Path:
    """The interpreter that has it, installed once. Skips the test where it cannot be had."""
    folder = hub.cache_dir() / "models" / f"lm-eval-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with FileLock(f"{folder}.lock"):
        if not (folder / "whole").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            beside = folder / "lib" / version / "site-packages" / "beside.pth"
            beside.write_text(sysconfig.get_path("purelib") + "\n")  # datasets and the like are there already
            command = [str(python), "-m", "pip", "install", "--quiet", *_PACKAGES]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            need(done.returncode == 0, f"lm_eval cannot be installed: {done.stderr[-300:]}")
            (folder / "whole").touch()
    return python


def evaluate(folder: Path, kind: str, url: str, model: str, key: str, task: str, **more: str) -> dict[str, Any]:
    """The harness's results of one task, whose YAML lies in `folder`, with the model of this kind (`local-...`)."""
    arguments = {"model": model, "base_url": url, "num_concurrent": "4", "max_retries": "1"} | more
    command = [str(_python()), "-m", "lm_eval", "run", "--model", kind, "--tasks", task, "--include_path", str(folder)]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    command += ["--apply_chat_template"] if "chat" in kind else []
    env = os.environ | {"OPENAI_API_KEY": key, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    found: dict[str, Any] = json.loads(results.read_text())
    return found | {"samples": [json.loads(line) for line in samples.read_text().splitlines()]}
