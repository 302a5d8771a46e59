"""`--headless-evaluate`: is an adapter better than its base, on rows that it did not learn from."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from qlora_gui.evaluation.job import Settings
from qlora_gui.evaluation.results import lines, parse
from qlora_gui.evaluation.run import AS_IT_IS, Reading, evaluate
from qlora_gui.files import check_writable, explained, write_whole


def run(
    adapters: Sequence[Path],
    data: str | None,
    out: Path | None,
    settings: Settings,
    base: str | None = None,
    revision: str = "",
    how: Reading = AS_IT_IS,
    root: Path | None = None,
) -> int:
    """Evaluate, print verdicts and figures, write everything to `out`. Returns 0. Raises UserError for bad input.

    `root` is the store's folder: also of adapters in it that are no runs the evaluation is kept.
    """
    if out is not None:
        check_writable(out, "The result")
    with tqdm(disable=not sys.stderr.isatty(), unit="row", leave=False) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        def say(text: str) -> None:
            tqdm.write(text, file=sys.stderr)

        result = evaluate(adapters, data, settings, say, progress, base=base, revision=revision, how=how, root=root)
    for evaluation in filter(None, map(parse, result["evaluations"])):
        print("\n".join(lines(evaluation)), flush=True)
    if out is not None:
        with explained("The result", out):
            write_whole(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        print(f"Everything measured is in {out}")
    return 0
