"""Results as files and tables: what a run found, what is kept of it in the repository, and docs/models.md."""

import json
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.matrix.specs import REFUSED, SPECS

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("results.json")
DOCUMENT = ROOT / "docs" / "models.md"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
# The columns, and the checks of each; the first decides whether it works at all.
COLUMNS = {
    "trains": ("train", "train bias", "number format"),
    "exact": ("long", "learned tokens", "short", "checkpointed", "bias", "eager", "sdpa", "held-out", "probes"),
    "packing": ("packed", "packed bias", "train packed"),
    "evaluate": ("evaluate",),
    "compare": ("load", "greedy", "own conversations", "sampled"),
    "fit": ("fit",),
}
FAULTS = ("crash", "wrong", "late")
Found = Mapping[str, tuple[str, str]]  # status and detail by check

INTRODUCTION = """\
# Models

Which architectures work, and how far that was tested. This page is generated: `python -m tests.matrix table`.

Each line is a small model with random weights: the architecture and the options of the published models (sliding
windows, grouped attention, experts, tied embeddings, soft caps), 2 to 6 layers, quantized to 4 bits. Each one is
trained, probed, compared and evaluated by this program on a CPU, and everything is held against the same model in
plain transformers and PEFT. This says that the program computes the right thing, not that a model of full size fits on a
given GPU or learns well. Nothing here was run on CUDA.

- **trains**: a run finishes in bf16, all layers compute in bf16, and PEFT finds every tensor of the adapter; with
  `bias: all` too, where the architecture has biases.
- **exact**: in fp32 with random adapters, the loss of a step is within 1e-4 of plain PEFT's and all gradients within
  2e-3 (1e-7 and 1e-6 are typical): short and long examples, gradient checkpointing, trained biases, both kinds of
  attention. The learned tokens are the answer and its end mark, held-out losses are the same, and probe answers to
  several prompts in one batch are those to each prompt alone.
- **packing**: the same with several examples per row, also where rows are longer than a sliding window.
- **evaluate**: losses and answers of the base and two adapters in one batch are those of each model alone.
- **compare**: greedy answers are those of each model alone, also with a conversation of its own for each column;
  sampled answers come again under the same seed.
- **fit**: the memory plan counts every weight of the model.

`yes` means that every check passed. A number leads to a note below the table. *refused* means that the program says
so, with the reason, before the run begins. `-` means that an earlier column rules it out.
"""


def read(folder: Path) -> dict[str, Found]:
    """The results in a folder, in the order of the specs."""
    files = {name: folder / f"{name}.json" for name in SPECS}
    return {name: read_one(file) for name, file in files.items() if file.exists()}


def read_one(file: Path) -> Found:
    return {key: (status, detail) for key, (status, detail, _) in json.loads(file.read_text()).items()}


def faults(name: str, found: Found) -> list[str]:
    """What must not be: a crash, a wrong result, a late refusal, and a refusal that the specs do not expect, or lack."""
    told = [f"{key}: {status}: {detail}" for key, (status, detail) in found.items() if status in FAULTS]
    expected = REFUSED.get(name, {})
    for key, (status, detail) in found.items():
        if key != "plain" and status in ("refused", "outside") and expected.get(key, "\0") not in detail:
            told.append(f"{key}: {status}, which is not expected: {detail}")
        if status == "ok" and key in expected:
            told.append(f"{key}: works, and the specs expect a refusal: {expected[key]}")
    return told


def line(name: str, file: Path, seconds: float, status: int) -> str:
    """One line on a run that has ended."""
    if not file.exists():
        return f"{name}: no result, status {status}, in {seconds:.0f} s; see {file.with_suffix('.log')}"
    found = read_one(file)
    bad = [f"{key} {status}" for key, (status, _) in found.items() if status != "ok"]
    return f"{name}: {len(found)} checks in {seconds:.0f} s, {'not ok: ' + ', '.join(bad) if bad else 'all ok'}"


def report(results: Mapping[str, Found]) -> str:
    """A line for each check that is not ok, then how many there are of each kind."""
    rows = [(name, key, *found) for name, checks in results.items() for key, found in checks.items()]
    lines = [f"{name} | {key} | {status} | {detail}" for name, key, status, detail in rows if status != "ok"]
    counts: dict[str, int] = {}
    for _, _, status, _ in rows:
        counts[status] = counts.get(status, 0) + 1
    right = sum(all(status == "ok" for status, _ in found.values()) for found in results.values())
    return "\n".join([*lines, "", f"{len(results)} architectures, {right} all ok; checks: {counts}"])


def collect(folder: Path) -> None:
    """Keep a run's results in the repository: statuses, and details of what is not ok. Says which specs it lacks."""
    results = read(folder)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit.stdout.strip()}
    about |= {library: version(library) for library in LIBRARIES}
    home = f"{folder.resolve().parent}/"
    lines = []
    for name, found in results.items():
        kept = {
            key: status if status == "ok" else [status, detail.replace(home, "")]
            for key, (status, detail) in found.items()
        }
        lines.append(f"{json.dumps(name)}: {json.dumps(kept, ensure_ascii=False)}")
    body = ",\n".join(lines)
    STORED.write_text(f'{{"about": {json.dumps(about)},\n"architectures": {{\n{body}\n}}}}\n', encoding="utf-8")
    missing = [name for name in SPECS if name not in results]
    print(f"{len(results)} architectures kept in {STORED.name}; without a result: {missing or 'none'}")


def stored() -> tuple[dict[str, str], dict[str, Found]]:
    """What `collect` kept: about the run, and its results."""
    whole: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return whole["about"], {
        name: {key: ("ok", "") if one == "ok" else (one[0], one[1]) for key, one in found.items()}
        for name, found in whole["architectures"].items()
    }


def document(about: Mapping[str, str], results: Mapping[str, Found]) -> str:
    """docs/models.md."""
    notes: list[str] = []
    head = ["model", "architecture", *COLUMNS]
    rows = [
        [name, SPECS[name].config.removesuffix("Config"), *(cell(found, checks, notes) for checks in COLUMNS.values())]
        for name, found in results.items()
    ]
    used = ", ".join(f"{library} {about[library]}" for library in LIBRARIES)
    whole = sum(set(row[2:]) == {"yes"} for row in rows)
    lines = [
        f"{len(rows)} architectures, {whole} of them without a note; {about['date']}, commit {about['commit']}, {used}.",
        "",
        *("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]),
        "",
        "## Notes",
        "",
        *(f"{number}. {note}" for number, note in enumerate(notes, 1)),
    ]
    return "\n".join([INTRODUCTION, *lines]) + "\n"


def cell(found: Found, checks: tuple[str, ...], notes: list[str]) -> str:
    """What a column says; its reasons go into `notes`, each once."""
    if checks[0] not in found:
        return "-"
    bad = {key: found[key] for key in checks if key in found and found[key][0] != "ok"}
    if not bad:
        return "yes"
    numbers = []
    for status, detail in bad.values():
        words = {"outside": "plain transformers and PEFT fail too", "late": "refused only after the training"}
        note = f"{words.get(status, status)}: {detail}".replace("|", "\\|").replace("\n", " ")
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    statuses = {status for status, _ in bad.values()}
    worst = next((status for status in FAULTS if status in statuses), "")
    if worst:
        word = f"**{'refused late' if worst == 'late' else worst}**"
    elif checks[0] in bad:
        word = "not in PEFT either" if bad[checks[0]][0] == "outside" else "refused"
    else:
        word = "in part"
    return f"{word} {', '.join(map(str, dict.fromkeys(numbers)))}"
