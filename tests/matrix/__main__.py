"""Which architectures the program works with: builds small random models and holds it against plain transformers.

python -m tests.matrix run [NAME ...]   check them (all, or - for names on stdin), a process each; goes on where it was
python -m tests.matrix report           what is not ok
python -m tests.matrix collect          results of the last runs -> tests/matrix/results.json
python -m tests.matrix table            docs/models.md, from tests/matrix/results.json

Options: --home FOLDER (models and results; default: `matrix` in the cache folder), --jobs N, --again (also what has a
result already).
"""

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from qlora_gui import hub
from tests.matrix import table
from tests.matrix.specs import SPECS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("verb", choices=["run", "report", "collect", "table"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--home", type=Path, default=hub.cache_dir() / "matrix")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    given = parser.parse_args(argv)
    results = given.home / "results"
    if given.verb == "run":
        names = (line.strip() for line in sys.stdin) if given.names == ["-"] else given.names or list(SPECS)
        run(names, given.home, given.jobs, given.again)
    elif given.verb == "report":
        print(table.report(table.read(results)))
    elif given.verb == "collect":
        table.collect(results)
    else:
        print(table.document(*table.stored()), end="")
    return 0


def run(names: Iterable[str], home: Path, jobs: int, again: bool) -> None:
    """Check each in a process forked from this one, which has imported everything; a line a finished one."""
    import torch
    from transformers.utils import logging

    from tests.matrix import checks

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # threads do not survive a fork
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    (home / "results").mkdir(parents=True, exist_ok=True)
    os.environ["QLORA_GUI_CACHE"] = _cache(home)
    running: dict[int, tuple[str, float]] = {}

    def finish() -> None:
        pid, status = os.wait()
        name, began = running.pop(pid)
        print(table.line(name, home / "results" / f"{name}.json", time.monotonic() - began, status), flush=True)

    for name in names:
        if (home / "results" / f"{name}.json").exists() and not again:
            continue
        if len(running) >= jobs:
            finish()
        pid = os.fork()
        if not pid:
            _child(name, home, checks.check)
        running[pid] = (name, time.monotonic())
        if jobs == 1:
            finish()
    while running:
        finish()


def _cache(home: Path) -> str:
    """A cache of its own for quantized bases; the fetched tokenizers are shared."""
    own, shared = home / "cache", hub.cache_dir() / "tokenizers"
    own.mkdir(exist_ok=True)
    shared.mkdir(parents=True, exist_ok=True)
    if not (own / "tokenizers").exists():
        (own / "tokenizers").symlink_to(shared.resolve(), target_is_directory=True)
    return str(own)


def _child(name: str, home: Path, check: Callable[[str, Path], object]) -> None:
    """One architecture; never returns. A result is only there when all checks were made."""
    code = 1
    try:
        with open(home / "results" / f"{name}.log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        found = check(name, home)
        aside = home / "results" / f"{name}.aside"
        aside.write_text(json.dumps(found, indent=1) + "\n")
        aside.replace(home / "results" / f"{name}.json")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
