"""`--headless-export`: a trained model to take along, and whether it is still the model that was evaluated."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qlora_gui.cli.compare import read_prompts
from qlora_gui.errors import UserError
from qlora_gui.export import job
from qlora_gui.export.job import Settings
from qlora_gui.formatting import amount
from qlora_gui.inference.protocol import Conversation
from qlora_gui.runs.launch import child_environment

__all__ = ["Settings", "conversations", "run"]
_TIDYING_SECONDS = 10.0


def run(
    adapter: Path,
    settings: Settings,
    base: str | None = None,
    revision: str = "",
    prompts: Sequence[Conversation] = (),
) -> int:
    """Export in a child process, which it follows. Returns 0, or 1 where the exported model is worse. Raises UserError."""
    asked: dict[str, Any] = {"settings": asdict(settings), "adapter": str(adapter.absolute())}
    asked |= {"base": base, "revision": revision, "prompts": list(prompts)}
    code, _ = follow(job.MODULE, asked)
    made = job.read(Path(settings.out)) if code == 0 else None
    if made is None:
        raise UserError(f"The export ended without an error message (exit code {code}): see what is written above.")
    print(f"{made.proof}\n{amount(made.bytes)} in {made.folder}", flush=True)
    return int(made.worse)


def follow(module: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Let a child do what it is asked on its stdin, and show what it says and how far it is.

    Returns its exit code and its last event. Raises UserError where it says what was wrong.
    """
    command = [sys.executable, "-m", module, "--lines"]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=child_environment()
    )
    assert child.stdin and child.stdout
    error, event = "", {}
    try:
        child.stdin.write(json.dumps(asked))
        child.stdin.close()
        with tqdm(disable=not sys.stderr.isatty(), leave=False, bar_format="{l_bar}{bar}") as bar:
            for line in child.stdout:
                event = json.loads(line)
                if event["kind"] == "progress":
                    bar.total = event["of"]
                    bar.update(event["done"] - bar.n)
                elif event["kind"] == "stage":
                    tqdm.write(event["text"], file=sys.stderr)
                elif event["kind"] == "failed":
                    error = event["message"]
    finally:
        code = _ended(child)
    if error:
        raise UserError(error)
    return code, event


def conversations(file: Path | None, settings: dict[str, Any]) -> list[Conversation]:
    """The prompts of a file, all of them unless the settings say how many. Raises UserError for what cannot be asked with them."""
    if file is None:
        return []
    if settings.get("kind") == "gguf-lora":
        raise UserError("A LoRA file is read back whole and asked nothing: leave --prompts out.")
    if settings.get("max_new_tokens") == 0:
        raise UserError(
            "Prompts without answers compare nothing: give --max-new-tokens more than 0, or leave --prompts out."
        )
    found = [prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}] for prompt in read_prompts(file)]
    settings.setdefault("rows", len(found))
    return found


def _ended(child: subprocess.Popen[str]) -> int:
    """The child's exit code. A Ctrl+C has mostly reached it, too, and it tidies up: a second signal would end that."""
    try:
        return child.wait(_TIDYING_SECONDS)
    except subprocess.TimeoutExpired:
        child.terminate()
        return child.wait()
