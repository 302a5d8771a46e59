"""`--headless-compare`: a file of prompts, answered by base and adapters, written as one JSON file."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlora_gui.compare.client import CompareClient
from qlora_gui.compare.settings import MAX_ADAPTERS, Decoding
from qlora_gui.errors import UserError
from qlora_gui.runs.files import write_whole
from qlora_gui.runs.store import Run, check_base

Prompt = dict[str, Any]


def compare_file(
    adapters: Sequence[Path],
    prompts_file: Path,
    out: Path,
    base: str | None,
    revision: str,
    decoding: Decoding,
    say: Callable[[str], None],
) -> None:
    """Answer every prompt of a file with the base and every adapter, and write the answers to `out`.

    Raises UserError for what is wrong with any of the arguments, before a model is loaded where that can be known.
    """
    prompts = read_prompts(prompts_file)
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK) or out.is_dir():
        raise UserError(f"The answers cannot be written to '{out}': choose a file in an existing, writable folder.")
    if len(adapters) > MAX_ADAPTERS:
        raise UserError(f"{len(adapters)} adapters are too many to compare at once: give {MAX_ADAPTERS} at most.")
    found, *_ = [trained_on(adapter) for adapter in adapters]  # all are looked at
    if base is not None:
        found |= {"base_model": base, "revision": revision}
    if not found["base_model"]:
        raise UserError(f"The adapter '{adapters[0]}' does not say what its base is: name it with --base.")
    check_base(found["base_model"], found["revision"])
    client = CompareClient()
    try:
        columns = client.columns(adapters=[path.absolute() for path in adapters], say=say, **found)
        answered = []
        for number, prompt in enumerate(prompts, 1):
            say(f"Prompt {number} of {len(prompts)}")
            answered.append(prompt | {"answers": _answers(client, prompt, len(columns), decoding)})
    finally:
        client.close()
    settings = decoding.model_dump()
    told = {"columns": [column | {"decoding": settings} for column in columns], "prompts": answered}
    write_whole(out, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def read_prompts(path: Path) -> list[Prompt]:
    """JSON lines with `prompt` or `messages`, or plain lines. Raises UserError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line separators unescaped
    except OSError as error:
        raise UserError(f"The prompts file '{path}' cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The prompts file '{path}' is not UTF-8: save it as UTF-8.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UserError(f"The prompts file '{path}' is empty: write one prompt a line.")
    as_json = numbered[0][1].lstrip().startswith("{")
    return [_json_prompt(path, number, line) if as_json else {"prompt": line.strip()} for number, line in numbered]


def _json_prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path.name} line {number} is not JSON: {error}.") from None
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return {"prompt": value["prompt"]}
    turns = value.get("messages") if isinstance(value, dict) else None
    if isinstance(turns, list) and turns and all(_is_turn(turn) for turn in turns):
        return {"messages": turns}
    raise UserError(f"{path.name} line {number} has neither a text 'prompt' nor 'messages' of role and content.")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def trained_on(adapter: Path) -> dict[str, Any]:
    """The base of an adapter, as arguments of `CompareClient.columns`; from its run.json, else from PEFT's config.

    `base_model` is empty where the folder does not name one. Raises UserError when it holds no adapter.
    """
    if (adapter / "run.json").is_file():
        config = Run(adapter).config()
        names = ("base_model", "revision", "quant_type", "double_quant")
        return {name: getattr(config, name) for name in names}
    try:
        told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        name = told.get("base_model_name_or_path") or ""
    except (OSError, ValueError, AttributeError):
        raise UserError(f"The folder '{adapter}' holds no adapter: it has no readable adapter_config.json.") from None
    return {"base_model": str(name), "revision": str(told.get("revision") or "")}


def _answers(client: CompareClient, prompt: Prompt, columns: int, decoding: Decoding) -> list[str]:
    messages = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
    texts = [""] * columns
    for event in client.answer([messages] * columns, decoding):
        if event["kind"] == "text":
            texts[event["column"]] += event["text"]
    return texts
