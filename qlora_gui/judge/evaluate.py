"""`python -m qlora_gui.judge.evaluate`: adapters measured against their base, and the result written beside each of them.

One question to the compare worker, which reads every row once under every column. Whoever follows reads
`evaluate.jsonl` in the first adapter's folder; the command line passes its own `say`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from qlora_gui.compare.batch import trained_on
from qlora_gui.compare.client import CompareClient
from qlora_gui.compare.settings import MAX_ADAPTERS
from qlora_gui.data import read
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.judge import evaluation, job, texts
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.files import write_whole
from qlora_gui.runs.rows import rows_of
from qlora_gui.runs.store import Run, check_base

MOST_FOREIGN = 50  # rows whose answers are also read after another row's prompt
_GENERAL = Path(__file__).parent / "general.txt"
_NO_RUN: dict[str, Any] = {"max_length": 1024, "system_prompt": "", "control": False}


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
) -> dict[str, Any]:
    """Measure adapters of one base against it. Gives `evaluations`, one an adapter, and `rows`, one a row.

    Without `data` the rows are those that the first adapter's run held out, less any that another was trained on.
    Each evaluation is also written into its adapter's folder where that is a run. Raises UserError.
    """
    if not 1 <= len(adapters) <= MAX_ADAPTERS:
        raise UserError(f"{len(adapters)} adapters cannot be evaluated at once: give 1 to {MAX_ADAPTERS}.")
    folders = [path.absolute() for path in adapters]
    base = next(trained_on(folder) for folder in folders)
    if not base["base_model"]:
        raise UserError(f"The adapter '{adapters[0]}' does not say what its base is, so it cannot be evaluated.")
    check_base(base["base_model"], base["revision"])
    question = _question(folders, data, settings)
    own = client or CompareClient()
    try:
        columns = own.columns(adapters=folders, say=say, **base)
        measured = _measure(own, question, settings, say, progress)
    finally:
        if client is None:
            own.close()
    if len(measured.rows) < 2:
        raise UserError(f"Of {question.source} only {len(measured.rows)} rows can be measured: give more with --data.")
    say("Computing intervals")
    chats = [example for example in question.examples if "messages" in example]
    questions = {example["row"]: _last(example, "user") for example in chats}
    references = {example["row"]: _last(example, "assistant") for example in chats}
    found = evaluation.put_together(
        measured, columns, questions, references, question.grams, question.source, asdict(settings)
    )
    for folder, one in zip(folders, found, strict=True):
        one["data"]["trained_on"] = question.shared
        if (folder / "run.json").is_file():
            write_whole(folder / job.FILE, json.dumps(one, ensure_ascii=False, indent=1) + "\n")
    return {"columns": columns, "evaluations": found, "rows": _rows(measured)}


def _question(folders: Sequence[Path], data: str | None, settings: job.Settings) -> Question:
    """The rows to ask. Raises UserError when there are none."""
    runs = [Run(folder) if (folder / "run.json").is_file() else None for folder in folders]
    configs = [run.config() if run else None for run in runs]
    trained = [_trained_rows(config) for config in configs]
    known = {_key(example) for rows in trained for example in rows}
    first = configs[0]
    if data is not None:
        found = read.load(data)
        examples, source = [*found.train, *(found.held_out or [])], Path(data).name
        shared = sum(_key(example) in known for example in examples)
    elif first is not None:
        held_out = rows_of(first).held_out
        examples = [example for example in held_out if _key(example) not in known]
        source, shared = "held-out rows of the run", len(held_out) - len(examples)
        if not examples:
            raise UserError(
                f"The run '{folders[0].name}' held out no rows that are left to measure: give some with --data."
            )
    else:
        raise UserError(f"The adapter '{folders[0]}' is no run of this program: name rows to measure on with --data.")
    taken = [{**example, "row": number} for number, example in enumerate(examples[: settings.rows], 1)]
    grams = [texts.grams([_answer(example) for example in rows]) for rows in trained]
    about = {name: getattr(first, name) for name in _NO_RUN} if first else _NO_RUN
    return Question(taken, source, grams, shared, **about)  # type: ignore[arg-type]


def _trained_rows(config: Any) -> list[Example]:
    """What a run was trained on; [] where its data is gone."""
    if config is None:
        return []
    try:
        return rows_of(config).train
    except UserError:
        return []


def _key(example: Example) -> str:
    turns = example.get("messages") or example.get("text")
    return json.dumps(turns, sort_keys=True, ensure_ascii=False)


def _answer(example: Example) -> str:
    """The last answer of an example, or its whole text."""
    return _last(example, "assistant") if "messages" in example else str(example.get("text", ""))


def _last(example: Example, role: str) -> str:
    """The last turn of a role; "" where there is none."""
    return next((turn["content"] for turn in reversed(example["messages"]) if turn["role"] == role), "")


def foreign(examples: Sequence[Example]) -> list[Example]:
    """Answers after the prompt of the row before, numbered by their own row; of conversations of one answer only."""
    single = [one for one in examples if [turn["role"] for turn in one.get("messages", [])].count("assistant") == 1]
    single = [one for one in single if one["messages"][-1]["role"] == "assistant"][:MOST_FOREIGN]
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
) -> evaluation.Measured:
    measured = evaluation.Measured()
    strangers = foreign(question.examples)
    of = len(question.examples) + len(strangers)
    say(f"Measuring {len(question.examples)} rows")
    for event in client.evaluate(
        question.examples,
        strangers,
        _GENERAL.read_text(encoding="utf-8"),
        max_length=question.max_length,
        max_new_tokens=settings.max_new_tokens,
        system_prompt=question.system_prompt,
        control=question.control,
    ):
        measured.take(event)
        if event["kind"] in ("measured", "foreign"):
            progress(len(measured.rows) + len(measured.foreign), of)
    return measured


def _rows(measured: evaluation.Measured) -> list[dict[str, Any]]:
    """What was measured of every row, for whoever wants to look closer."""
    keep = ("loss", "kl", "eos", "text", "ended", "tokens", "differs")
    return [
        {
            "row": measured.of_row(number),
            "supervised": measured.tokens(number),
            "prompt": measured.about["prompts"][number],
        }
        | {key: event[key] for key in keep if key in event}
        for number, event in sorted(measured.rows.items())
    ]


def main(argv: Sequence[str]) -> int:
    """The page's child: settings as JSON, and adapters; what it does goes into the first one's `evaluate.jsonl`."""
    settings, folders = job.Settings(**json.loads(argv[0])), [Path(word) for word in argv[1:]]
    try:
        with job.lock(folders[0]):
            return _logged(folders, settings, EventLog(folders[0] / job.PROGRESS))
    except filelock.Timeout:  # another page was faster
        return 1


def _logged(folders: Sequence[Path], settings: job.Settings, log: EventLog) -> int:
    log.append("started", adapters=[folder.name for folder in folders])
    last = -1

    def say(text: str) -> None:
        log.append("stage", text=text)

    def progress(done: int, of: int) -> None:
        nonlocal last
        if 100 * done // of > last:
            last = 100 * done // of
            log.append("progress", done=done, of=of)

    try:
        evaluate(folders, None, settings, say, progress)
    except UserError as error:
        log.append("failed", message=str(error))
        return 1
    except Exception as error:
        log.append("failed", message=f"{type(error).__name__}: {error}")
        raise
    log.append("finished")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
