"""`python -m qlora_gui.evaluation.run`: adapters measured against their base, and the result written beside each of them.

One question to the compare worker, which reads every row once under every column. Whoever follows reads
`evaluate.jsonl` in the first adapter's folder; the command line passes its own `say`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_gui import locks
from qlora_gui.data import load, prompts
from qlora_gui.data.bad_rows import place
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job, metrics, results
from qlora_gui.files import explained, write_whole
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient, base_of
from qlora_gui.inference.sampling import MAX_ADAPTERS
from qlora_gui.runs import changes
from qlora_gui.runs.event_text import data_remarks, data_warnings
from qlora_gui.runs.store import Run
from qlora_gui.runs.training_rows import rows_of

MOST_FOREIGN = 50  # rows whose answers are also read after another row's prompt
_GENERAL = Path(__file__).parent / "general.txt"
_NO_RUN: dict[str, Any] = {"max_length": 1024, "system_prompt": "", "control": False}


@dataclass(frozen=True)
class Reading:
    """How data to measure on is read: as which format, which split of a hub data set, and without its faulty rows."""

    skip_bad_rows: bool = False
    format: str = "auto"
    split: str = "train"


AS_IT_IS = Reading()


@dataclass(frozen=True)
class Question:
    """The rows to measure on, where they come from, and the n-grams of what each adapter was trained to answer."""

    examples: list[Example]
    source: str
    grams: list[set[tuple[str, ...]]]
    shared: int  # rows left out, or only counted, because an adapter was trained on them
    max_length: int
    system_prompt: str
    control: bool


def evaluate(
    adapters: Sequence[Path],
    data: str | None,
    settings: job.Settings,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, of: None,
    client: CompareClient | None = None,
    base: str | None = None,
    revision: str = "",
    how: Reading = AS_IT_IS,
    root: Path | None = None,
) -> dict[str, Any]:
    """Measure adapters of one base against it. Gives `evaluations`, one per adapter, and `rows`, one per row.

    `base` is another base than the first adapter names, or the same by another name. `how` says how `data` is
    read.

    Without `data` the rows are those that the first adapter's run held out, less any that another was trained on.
    Each evaluation is also written into its adapter's folder where that is a run, or lies in `root`, the store's folder.
    Raises UserError.
    """
    if not 1 <= len(adapters) <= MAX_ADAPTERS:
        raise UserError(f"{len(adapters)} adapters cannot be evaluated at once: give 1 to {MAX_ADAPTERS}.")
    folders = [path.absolute() for path in adapters]
    with locks.reading(folders, "an evaluation"):
        result = _evaluated(folders, data, settings, say, progress, client, base, revision, how)
        for folder, evaluation in zip(folders, result["evaluations"], strict=True):
            _keep(folder, evaluation, root, say)
        return result


def _evaluated(
    folders: Sequence[Path],
    data: str | None,
    settings: job.Settings,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
    client: CompareClient | None,
    base: str | None,
    revision: str,
    how: Reading,
) -> dict[str, Any]:
    base_arguments = base_of(folders, base, revision)
    question = _question(folders, data, settings, how, say)
    own = client or CompareClient()
    try:
        columns = own.columns(adapters=folders, say=say, **base_arguments)
        measured = _measure(own, question, settings, say, progress)
    finally:
        if client is None:
            own.close()
    if len(measured.rows) < 2:
        raise UserError(f"Of {question.source} only {len(measured.rows)} rows can be measured: give more with --data.")
    say("Computing intervals")
    evaluations = results.put_together(measured, columns, question.grams, question.source, asdict(settings))
    for evaluation in evaluations:
        evaluation["data"]["trained_on"] = question.shared
    return {"columns": columns, "evaluations": evaluations, "rows": _rows(measured)}


def _keep(folder: Path, evaluation: dict[str, Any], root: Path | None, say: Callable[[str], None]) -> None:
    """Write an evaluation into its adapter's folder, or say why not."""
    if folder.is_symlink():
        say(f"{folder.name} is a symbolic link: the results are not written to its target")
    elif (folder / "run.json").is_file() or (folder.is_dir() and folder.parent == root):
        with explained("The evaluation", folder):
            write_whole(folder / job.FILE, json.dumps(evaluation, ensure_ascii=False, indent=1) + "\n")
    elif folder.is_dir():
        say(f"'{folder}' is no folder of this program: its evaluation is not kept there, --out keeps it in a file")
    else:
        say(f"'{folder.name}' was deleted in the meantime: its evaluation is not kept anywhere else.")


def _question(
    folders: Sequence[Path], data: str | None, settings: job.Settings, how: Reading, say: Callable[[str], None]
) -> Question:
    """The rows to ask; says what of `data` is not used. Raises UserError when there are none."""
    runs = [Run(folder) if (folder / "run.json").is_file() else None for folder in folders]
    configs = [run.config() if run else None for run in runs]
    trained = [_trained_rows(run, say) for run in runs]
    if unknown := [folder.name for folder, run in zip(folders, runs, strict=True) if run is None]:
        say(f"What {', '.join(unknown)} was trained on is not known: perhaps on some of these rows")
    known = {_key(example) for rows in trained for example in rows}
    first = configs[0]
    if data is not None:
        loaded = load.load(data, how.format, how.split, skip_bad_rows=how.skip_bad_rows)
        seen = vars(loaded) | {"unused_files": loaded.source.unused_files}
        for text in (*data_warnings(seen), *data_remarks(seen)):
            say(f"{Path(data).name}: {text}")
        for fault in loaded.skipped_rows:
            say(f"{place(fault.plain())} left out: {fault.reason}")
        examples, source = [*loaded.train, *(loaded.held_out or [])], Path(data).name
        shared = sum(_key(example) in known for example in examples)
    elif first is not None and runs[0] is not None:
        if change := changes.describe_data_changes(runs[0]):
            raise UserError(
                f"Which rows the run '{folders[0].name}' held out is no longer known, because {change}: put it back, or give "
                "rows that it did not learn from with --data."
            )
        held_out = rows_of(first, runs[0].history()).held_out
        examples = [example for example in held_out if _key(example) not in known]
        source, shared = "held-out rows of the run", len(held_out) - len(examples)
        if not examples:
            raise UserError(
                f"The run '{folders[0].name}' held out no rows that are left to measure: give some with --data."
            )
    else:
        raise UserError(
            f"The adapter '{folders[0]}' was trained elsewhere, so it has no held-out rows here: name rows to measure on with "
            "--data, or Rows from in the page."
        )
    taken = [{**example, "row": number} for number, example in enumerate(examples[: settings.rows], 1)]
    grams = [metrics.grams([_answer(example) for example in rows]) for rows in trained]
    about = {name: getattr(first, name) for name in _NO_RUN} if first else _NO_RUN
    return Question(taken, source, grams, shared, **about)  # type: ignore[arg-type]


def _trained_rows(run: Run | None, say: Callable[[str], None]) -> list[Example]:
    """What a run was trained on; [] where its data is gone. Reports missing and changed data."""
    if run is None:
        return []
    warning = f"Rows that '{run.id}' was trained on cannot be told from others"
    try:
        if change := changes.describe_data_changes(run):
            say(f"{warning}, because {change}.")
        return rows_of(run.config(), run.history()).train
    except UserError as error:
        say(f"{warning}: {error}")
        return []


def _key(example: Example) -> str:
    turns = example.get("messages") or example.get("text")
    return json.dumps(turns, sort_keys=True, ensure_ascii=False)


def _answer(example: Example) -> str:
    """The last answer of an example, or its whole text."""
    return prompts.latest(example.get("messages", []), "assistant") or str(example.get("text", ""))


def foreign(examples: Sequence[Example]) -> list[Example]:
    """Answers after the prompt of the row before, numbered by their own row; of conversations of one answer only."""
    single = [
        example
        for example in examples
        if [turn["role"] for turn in example.get("messages", [])].count("assistant") == 1
    ]
    single = [example for example in single if example["messages"][-1]["role"] == "assistant"][:MOST_FOREIGN]
    if len(single) < 2:
        return []
    pairs = zip(single, [single[-1], *single[:-1]], strict=True)
    return [{**own, "messages": [*before["messages"][:-1], own["messages"][-1]]} for own, before in pairs]


def _measure(
    client: CompareClient,
    question: Question,
    settings: job.Settings,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> results.Measured:
    measured = results.Measured()
    strangers = foreign(question.examples)
    of = len(question.examples) + len(strangers)
    say(f"Measuring {len(question.examples)} rows")
    request = protocol.Evaluate(
        question.examples,
        strangers,
        _GENERAL.read_text(encoding="utf-8"),
        max_length=question.max_length,
        max_new_tokens=settings.max_new_tokens,
        system_prompt=question.system_prompt,
        control=question.control,
    )
    for event in client.evaluate(request):
        measured.take(event)
        if isinstance(event, protocol.Measured | protocol.Foreign):
            progress(len(measured.rows) + len(measured.foreign), of)
    return measured


def _rows(measured: results.Measured) -> list[dict[str, Any]]:
    """What was measured of every row, for whoever wants to look closer."""
    keep = ("loss", "kl", "eos"), ("text", "ended", "tokens", "differs")
    return [
        {
            "row": measured.of_row(number),
            "supervised": measured.tokens(number),
            "prompt": measured.about.prompts[number],
        }
        | {key: getattr(row, key) for key in (*keep[0], *(keep[1] if row.text is not None else ()))}
        for number, row in sorted(measured.rows.items())
    ]


def main(argv: Sequence[str]) -> int:
    """The page's child: settings as JSON, and adapters; what it does goes into the first one's `evaluate.jsonl`."""
    asked, folders = json.loads(argv[0]), [Path(word) for word in argv[1:]]
    data, base = asked.pop("data") or None, asked.pop("base") or None
    settings, root = job.Settings(**asked), folders[0].parent
    return job.JOB.run(folders, lambda say, count: evaluate(folders, data, settings, say, count, base=base, root=root))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
