"""`python -m tests.null_card.child MODE`: on the null card, calls functions of `tests.null_card.inside` as it is asked.

MODE is emulate or native. A request is a JSON line on stdin with `function` (`module:name`) and `arguments`; an answer a
JSON line on stdout with its `result`, or the traceback as `failure`. What the functions print goes to stderr.
"""

import gc
import json
import os
import sys
import traceback
from importlib import import_module
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    enter = import_module(f"tests.null_card.{sys.argv[1]}").enter
    enter()
    for line in sys.stdin:
        print(json.dumps(_answer(**json.loads(line))), file=answers, flush=True)


def _answer(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    module, _, name = function.partition(":")
    try:
        called = getattr(import_module(f"tests.null_card.inside.{module}"), name)
        return {"result": called(**arguments)}
    except BaseException:
        return {"failure": traceback.format_exc()}


if __name__ == "__main__":
    main()
