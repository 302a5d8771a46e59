"""`python -m qlora_gui.models.render`: renders chat templates for `data.template_renderer`, with little time and little memory.

A template is a program, and may be a stranger's: it can run for ever or fill the memory, in one operation of C that
nothing interrupts. So it runs in this process, which the kernel ends when its time is over, also without a parent.
It renders as transformers does, in its sandbox.
"""

import json
import os
import pickle
import struct
import sys
import time
from typing import Any, BinaryIO

from qlora_gui.data.template_renderer import MOST_MEMORY, MOST_TEXT, READY, SECONDS
from qlora_gui.system import collector, processes, signals

with collector.paused():
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_SIZE = struct.Struct(">I")


class _Tokenizer:
    """As much of a tokenizer as a template sees of it."""

    chat_template = None
    get_chat_template = PreTrainedTokenizerBase.get_chat_template

    def __init__(self, special_tokens: dict[str, Any]):
        self.special_tokens_map = special_tokens


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    tokenizer: Any = _Tokenizer(asked["special_tokens"])
    try:
        text = str(
            PreTrainedTokenizerBase.apply_chat_template(
                tokenizer,
                asked["turns"],
                tools=asked["tools"],
                chat_template=asked["template"],
                tokenize=False,
                add_generation_prompt=asked["generation_prompt"],
                **asked["settings"],
            )
        )
    except MemoryError:
        return {"too_much": "memory"}
    except Exception as error:  # templates are programs; they raise what they like
        return {"error": str(error)[:MOST_TEXT].strip() or type(error).__name__}
    return {"too_much": "text"} if len(text) > MOST_TEXT else {"text": text}


def _read(stream: BinaryIO) -> Any:
    """The next question; None where the parent is gone."""
    head = stream.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    body = stream.read(_SIZE.unpack(head)[0])
    return pickle.loads(body)  # the parent's own: what comes back to it is JSON


def main() -> None:
    signals.ignore_interrupt()
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    processes.limit_growth(MOST_MEMORY)  # where the system can; the time is limited all the same
    stdout.write(READY)
    stdout.flush()
    while (asked := _read(stdin)) is not None:
        signals.limit_computing(SECONDS)  # not on Windows, where the parent's own limit has to do
        began = time.process_time()
        answer = _answer(asked)
        answer["seconds"] = time.process_time() - began
        signals.limit_computing(0)
        body = json.dumps(answer).encode()
        stdout.write(_SIZE.pack(len(body)) + body)
        stdout.flush()


if __name__ == "__main__":
    main()
