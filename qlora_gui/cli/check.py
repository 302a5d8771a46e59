"""`--headless-check`: does this machine do what a run needs, in plain words, one line per check."""

import json
import sys
import time

from qlora_gui.check import client, lines
from qlora_gui.check.lines import Line
from qlora_gui.runs.store import RunStore
from qlora_gui.system import console

EXIT_GOOD, EXIT_FAILED = 0, 1


def show(store: RunStore, as_json: bool) -> int:
    """Print every line when it is known, then a verdict and what to paste into an issue; 1 where something failed.

    As JSON one object per line, the last one with `verdict` and `for_an_issue`. Raises UserError while a run trains.
    """
    began = time.monotonic()
    results: list[Line] = []
    for line in client.run(store):
        results.append(line)
        print(json.dumps(line.as_dict(), ensure_ascii=not console.shows_everything()) if as_json else line, flush=True)
    failed = any(line.state == "failed" for line in results)
    verdict = lines.verdict(results, time.monotonic() - began)
    pasted = lines.for_an_issue(results, verdict)
    if as_json:
        print(
            json.dumps(
                {"verdict": verdict, "failed": failed, "for_an_issue": pasted},
                ensure_ascii=not console.shows_everything(),
            ),
            flush=True,
        )
    else:
        print(f"\n{verdict}")
        if any(line.state != "ok" for line in results) or sys.stdout.isatty():
            print(f"\nTo paste into an issue (no names, paths or tokens):\n\n```\n{pasted}\n```")
    return EXIT_FAILED if failed else EXIT_GOOD
