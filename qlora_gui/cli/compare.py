"""`--headless-compare`: a file of prompts, answered by base and adapters, written as one JSON file."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlora_gui import plain_files
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding
from qlora_gui.data import lenient_json
from qlora_gui.errors import UserError
from qlora_gui.runs import base_names
from qlora_gui.files import told, write_whole
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
    found = base_of(adapters, base, revision)
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
    found = {"columns": [column | {"decoding": settings} for column in columns], "prompts": answered}
    with told("The answers", out):
        write_whole(out, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


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
        value = lenient_json.parsed(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} line {number} is not JSON: {error}.") from None
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return {"prompt": value["prompt"]}
    turns = value.get("messages") if isinstance(value, dict) else None
    if isinstance(turns, list) and turns and all(_is_turn(turn) for turn in turns):
        return {"messages": turns}
    raise UserError(f"{path.name} line {number} has neither a text 'prompt' nor 'messages' of role and content.")


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def base_of(adapters: Sequence[Path], base: str | None = None, revision: str = "") -> dict[str, Any]:
    """The base that adapters are compared on, as arguments of `CompareClient.columns`: the one named, or the first's own.

    Raises UserError when that is not to be had, or a folder holds no adapter.
    """
    found, *_ = [trained_on(adapter) for adapter in adapters]  # all are looked at
    if base is not None:
        found |= {"base_model": base, "revision": revision, "chosen": True}
    named = found["base_model"]
    if not named:
        raise UserError(f"The adapter '{adapters[0]}' does not say what its base is: name it with --base.")
    if base is None and base_names.is_elsewhere(named):
        raise UserError(
            f"The adapter '{adapters[0]}' was trained on '{named}', a folder that is not on this machine: name the same "
            "base with --base."
        )
    check_base(named, found["revision"])
    return found


def trained_on(adapter: Path) -> dict[str, Any]:
    """The base of an adapter, as arguments of `CompareClient.columns`; from its run.json, else from PEFT's config.

    `base_model` is empty where the folder does not name one. Raises UserError when it holds no adapter.
    """
    if (adapter / "run.json").is_file():
        config = Run(adapter).config()
        name, revision = base_names.resolved(config.base_model, config.revision)
        quantization = {"quant_type": config.quant_type, "double_quant": config.double_quant}
        return {"base_model": name, "revision": revision, **quantization}
    try:
        told = json.loads(plain_files.read_text(adapter / "adapter_config.json", plain_files.MOST_CONFIG))
        name, revision = base_names.resolved(
            str(told.get("base_model_name_or_path") or ""), str(told.get("revision") or "")
        )
    except plain_files.StrangeFile as error:
        raise UserError(f"The adapter '{adapter}' cannot be read: {error}.") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UserError(f"The folder '{adapter}' holds no adapter: it has no readable adapter_config.json.") from None
    return {"base_model": name, "revision": revision}


def _answers(client: CompareClient, prompt: Prompt, columns: int, decoding: Decoding) -> list[str]:
    messages = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
    texts = [""] * columns
    for event in client.answer([messages] * columns, decoding):
        if event["kind"] == "text":
            texts[event["column"]] += event["text"]
    return texts
