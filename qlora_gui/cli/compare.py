"""`--headless-compare`: a file of prompts, answered by base and adapters, written as one JSON file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlora_gui.data import lenient_json
from qlora_gui.errors import UserError
from qlora_gui.files import check_writable, explained, write_whole
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient, base_of
from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding

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
    check_writable(out, "The answers")
    if len(adapters) > MAX_ADAPTERS:
        raise UserError(f"{len(adapters)} adapters are too many to compare at once: give {MAX_ADAPTERS} at most.")
    base_arguments = base_of(adapters, base, revision)
    client = CompareClient()
    try:
        columns = client.columns(adapters=[path.absolute() for path in adapters], say=say, **base_arguments)
        answered = []
        for number, prompt in enumerate(prompts, 1):
            say(f"Prompt {number} of {len(prompts)}")
            answered.append(prompt | {"answers": _answers(client, prompt, len(columns), decoding)})
    finally:
        client.close()
    settings = decoding.model_dump()
    content = {"columns": [column | {"decoding": settings} for column in columns], "prompts": answered}
    with explained("The answers", out):
        write_whole(out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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
        raise UserError(f"The prompts file '{path}' is empty: write one prompt per line.")
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


def _answers(client: CompareClient, prompt: Prompt, columns: int, decoding: Decoding) -> list[str]:
    messages = prompt.get("messages") or [{"role": "user", "content": prompt["prompt"]}]
    answers = protocol.collect(client.answer([messages] * columns, decoding), columns)
    return [answer.text for answer in answers]
