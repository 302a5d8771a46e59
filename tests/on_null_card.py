"""The page docs/memory.md: what the plan of memory said, and what torch's allocator gave on emulated GPUs."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "memory.md"
RESULTS = ROOT / "benchmarks" / "results" / "plan_on_null_card.json"


def found() -> dict[str, Any]:
    """The results of benchmarks/plan_on_null_card.py."""
    told: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return told


def experiments() -> list[dict[str, Any]]:
    """The cells of the README's three experiments."""
    return [cell for cell in found()["cells"] if "experiment" in cell]


def ours() -> list[dict[str, Any]]:
    """The cells of the way this program trains."""
    return _ours(found()["cells"])


def _ours(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell.get("way", "ours") == "ours"]


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How far ours is off, and how often a verdict was wrong."""
    mine = _ours(cells)
    off = [abs(cell["off"]) for cell in mine if cell["off"] is not None]
    died = [cell for cell in mine if cell["allocated"] is None]
    return {
        "cells": len(mine),
        "measured": len(off),
        "median": statistics.median(off) if off else None,
        "worst": max(off, default=None),
        "out_of_memory": len(died),
        "died_though_said_to_fit": sum(cell["verdict"] != "does not fit" for cell in died),
        "ran_though_said_not_to_fit": sum(
            cell["verdict"] == "does not fit" for cell in mine if cell["allocated"] is not None
        ),
    }


def peak(cell: dict[str, Any]) -> str:
    """What the allocator gave at most, for people."""
    return "out of memory" if cell["allocated"] is None else f"{cell['allocated'] / 2**30:.1f} GB"


def table() -> str:
    """One row for each card, base and kind of checkpointing."""
    lines = [
        "| card | base | checkpointing | cells | ran | planned, GB | allocated, GB | plan is off, median | worst | said to fit and died |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell in ours():
        if "experiment" not in cell:
            groups.setdefault((cell["card"], cell["base"], cell["checkpointing"]), []).append(cell)
    for (card, base, level), cells in groups.items():
        ran = [cell for cell in cells if cell["off"] is not None]
        died = sum(cell["allocated"] is None and cell["verdict"] != "does not fit" for cell in cells)
        shown = [_range(ran, "planned"), _range(ran, "allocated"), *_off(ran)]
        head = [card.removeprefix("NVIDIA "), base.rpartition("/")[2], level, str(len(cells)), str(len(ran))]
        lines.append("| " + " | ".join([*head, *shown, str(died)]) + " |")
    return "\n".join(lines)


def whole() -> str:
    """All cells of ours in one sentence."""
    told = summary(found()["cells"])
    return (
        f"Of {told['cells']} runs {told['measured']} ran and {told['out_of_memory']} were out of memory. The plan was off by "
        f"{told['median']:.1%} in the median and {told['worst']:.1%} at worst; {told['died_though_said_to_fit']} runs died "
        f"that were said to fit, {told['ran_though_said_not_to_fit']} ran that were said not to fit."
    )


def _range(cells: list[dict[str, Any]], name: str) -> str:
    if not cells:
        return ""
    values = sorted(cell[name] / 2**30 for cell in cells)
    return f"{values[0]:.1f} to {values[-1]:.1f}"


def _off(cells: list[dict[str, Any]]) -> list[str]:
    if not cells:
        return ["", ""]
    worst = max(cells, key=lambda cell: abs(cell["off"]))
    return [f"{statistics.median(abs(cell['off']) for cell in cells):.1%}", f"{worst['off']:+.1%}"]


def filled(text: str) -> str:
    """The page with its generated parts made anew."""
    for part, body in {"whole": whole(), "emulated": table()}.items():
        pattern = rf"(<!-- {part}:.*?-->\n).*?(<!-- /{part} -->)"
        text = re.sub(pattern, lambda said, body=body: said.group(1) + body + "\n" + said.group(2), text, flags=re.S)
    return text
