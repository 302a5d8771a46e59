"""Write the generated parts of README.md and docs/: `python -m tests.readme`. A test checks that they are up to date."""

import ast
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from qlora_gui import config as configs
from qlora_gui.evaluation import metrics
from qlora_gui.memory import estimate, known_models
from qlora_gui.memory.budget import card
from tests import on_null_card

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
_OTHERS = {
    "adapters/README.md": "The folder of runs: one folder a run, one adapter a folder.",
    "benchmarks/": "Speed, as ratios measured side by side in one run; results in `benchmarks/results/`.",
    "docs/": "What the README links to: guides, screenshots, and a report of four real runs.",
    "tests/": "Tests; `tests/small_models.py` makes the small real models they use, `tests/matrix/` one of each architecture.",
}


def settings_table() -> str:
    """Every knob with its default and help."""
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in configs.fields().items():
        choices = configs.choices(field)
        text = f"{field.description} ({', '.join(choices)})" if choices else str(field.description)
        default = f"`{field.default}`" if field.default != "" else ""
        lines.append(f"| `{name}` | {default} | {text} |")
    return "\n".join(lines)


def fit_table() -> str:
    """The report's experiments on 16 GB: predicted peaks of the stock way and of ours, with verdicts, and the emulated ones."""
    lines = ["| | base | tokens | stock | ours | checkpointing | *emulated*: stock | ours |", "|---" * 8 + "|"]
    emulated = {(cell["experiment"], cell["length"], cell["way"]): cell for cell in on_null_card.experiments()}
    for number in (1, 2, 3):
        for length in (512, 1024):
            config = configs.resolve({"batch_size": 4, "max_length": length}, preset=f"experiment-{number}")
            shape = known_models.find(config)
            stock, ours = (estimate.plan(config, shape, card(16), way=way) for way in ("stock", "ours"))
            cells = [f"{plan.total / 2**30:.1f} GB, {plan.verdict}" for plan in (stock, ours)]
            base = config.base_model.rpartition("/")[2]
            cells += [
                ours.checkpointing,
                *(on_null_card.peak(emulated[number, length, way]) for way in ("stock", "ours")),
            ]
            lines.append(f"| {number} | {base} | 4 x {length} | {' | '.join(cells)} |")
    return "\n".join(lines)


_TOOLS = {
    "ours": "**ours**",
    "trainer": "transformers' Trainer, k-bit preparation",
    "trl": "TRL's SFTTrainer, padded",
    "trl-packed": "TRL's SFTTrainer, packed",
    "llamafactory": "LLaMA-Factory",
}


def speed_table() -> str:
    """One epoch of every tool as benchmarks/train_speed.py measured it, in bf16."""
    results = json.loads((ROOT / "benchmarks" / "results" / "train_speed.json").read_text())
    measured = {line["contestant"]: line for line in results["medians"]}
    best = min(line["held_out_loss"] for line in measured.values())
    lines = ["| | examples/s | ours is | peak memory | held-out loss after |", "|---|---|---|---|---|"]
    for tool, name in _TOOLS.items():
        line = measured[f"{tool}:bf16"]
        times = line["seconds"] / measured["ours:bf16"]["seconds"]
        loss = f"{line['held_out_loss']:.3f} ({line['held_out_loss'] / best - 1:+.1%})"
        faster = f"{times:.2f}x as fast" if tool != "ours" else ""
        lines.append(
            f"| {name} | {line['examples_per_second']:.1f} | {faster} | {line['peak_mib']:,.0f} MiB | {loss} |"
        )
    return "\n".join(lines)


def file_tree() -> str:
    """One line per file of the program: its docstring's first sentence; presets and data by their place."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "app.py", "qlora_gui"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout.split()
    lines = []
    for name in sorted(listed, key=lambda path: (path.count("/") > 0, Path(path).parts[:-1], path)):
        path = ROOT / name
        if path.exists() and (summary := _first_sentence(path)):
            lines.append(f"| `{name}` | {summary} |")
    lines += [f"| `{name}` | {summary} |" for name, summary in _OTHERS.items()]
    return "\n".join(["| file | what |", "|---|---|", *lines])


def _first_sentence(path: Path) -> str:
    if path.suffix == ".yaml":
        text = path.read_text().splitlines()[0].removeprefix("# ")
    elif path.suffix == ".py":
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
    elif path.suffix == ".jsonl":
        text = f"The demo data set, {path.stem.replace('heldout', 'held-out')} rows."
    else:
        text = ""
    first = re.split(r"(?<=[.])\s|\n\n|(?<=:)\n", text.strip() + "\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


def metrics_table() -> str:
    """Every metric of an evaluation, its unit, and which of two values is better."""
    lines = ["| metric | key | unit | better |", "|---|---|---|---|"]
    for metric in metrics.METRICS:
        unit = metric.unit or ("share" if metric.format.endswith("%") else "")
        lines.append(f"| {metric.label} | `{metric.key}` | {unit} | {metric.better} |")
    return "\n".join(lines)


# Every generated part: the page it stands in, and what makes it.
PARTS: dict[str, tuple[Path, Callable[[], str]]] = {
    "speed": (README, speed_table),
    "settings": (DOCS / "settings.md", settings_table),
    "fit": (DOCS / "memory.md", fit_table),
    "metrics": (DOCS / "evaluation.md", metrics_table),
    "files": (DOCS / "architecture.md", file_tree),
}


def filled(page: Path) -> str:
    """A page with its generated parts made anew. Raises ValueError when it lacks the marks of one."""
    text = page.read_text(encoding="utf-8")
    for part, (where, make) in PARTS.items():
        if where == page:
            pattern, body = rf"(<!-- {part}:[^\n]*-->\n).*?(<!-- /{part} -->)", make()
            text, count = re.subn(pattern, lambda marks, body=body: f"{marks[1]}{body}\n{marks[2]}", text, flags=re.S)
            if count != 1:
                raise ValueError(f"{page} has the marks of '{part}' {count} times")
    return on_null_card.filled(text) if page == on_null_card.PAGE else text


if __name__ == "__main__":
    for page in {page for page, _ in PARTS.values()}:
        page.write_text(filled(page), encoding="utf-8")
