"""The plan of memory against torch's own allocator, on GPUs that have memory and no processor (*emulated*).

`python benchmarks/plan_on_null_card.py`: the preflight's two steps of five bases at their full shapes, with random weights,
on a T4, a 4060 Ti and an H100 as tests/null_card makes them. torch's CUDA code runs whole and allocates what it would on the
card; kernels are not computed, so time says nothing here, and neither do drivers nor libraries besides torch.
`python -m tests.null_card` makes the environment once. Writes benchmarks/results/plan_on_null_card.json as cells come.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from machine import hardware  # noqa: E402

from qlora_gui import config as configs  # noqa: E402
from tests.null_card.__main__ import environment  # noqa: E402
from tests.null_card.cards import H100, RTX_4060_TI, T4, Card  # noqa: E402
from tests.null_card.host import NullCard  # noqa: E402
from tests.on_null_card import RESULTS, summary  # noqa: E402

CARDS = (T4, RTX_4060_TI, H100)
BASES = (
    "bigscience/bloom-560m",
    "bigscience/bloom-7b1",
    "meta-llama/Llama-3.2-1B",
    "Qwen/Qwen3-8B",
    "google/gemma-3-4b-pt",
)
LENGTHS, LEVELS = (512, 1024), ("none", "every-4", "all")
WAYS = (("none", False), ("none", True), ("all", False), ("all", True))  # biases trained; two examples a row
ABOUT = "Emulated: torch's CUDA allocator at full shapes on a GPU that has memory and no processor. No GPU was used."


def cells(card: Card) -> list[dict[str, Any]]:
    """The grid of one card: four rows of every base; and the README's three experiments on the 16 GB card."""
    found = [
        {"base": base, "rows": 4, "length": length, "packed": packed, "knobs": knobs(level, bias)}
        for base, length, level, (bias, packed) in itertools.product(BASES, LENGTHS, LEVELS, WAYS)
    ]
    return found + (experiments() if card is RTX_4060_TI else [])


def knobs(level: str, bias: str) -> dict[str, Any]:
    return {"gradient_checkpointing": level, "bias": bias, "rank": 16, "dropout": 0.05}


def experiments() -> list[dict[str, Any]]:
    """The report's experiments as the README's table has them, ours and the stock way."""
    found = []
    for number, length, way in itertools.product((1, 2, 3), (512, 1024), ("ours", "stock")):
        config = configs.resolve({"batch_size": 4, "max_length": length}, preset=f"experiment-{number}")
        chosen = {name: getattr(config, name) for name in ("rank", "alpha", "bias", "dropout", "target_modules")}
        found.append(
            {
                "experiment": number,
                "base": config.base_model,
                "rows": 4,
                "length": length,
                "packed": False,
                "way": way,
                "knobs": chosen | {"gradient_checkpointing": "auto"},
            }
        )
    return found


def measure(null_card: NullCard, card: Card, cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, with what was planned and allocated; `off` is planned / allocated - 1, None where it ran out of memory."""
    asked = {name: value for name, value in cell.items() if name != "experiment"}
    began = time.monotonic()
    told = null_card.ask("fit:preflight", card, native=True, seconds=1800, **asked)
    off = told["planned"] / told["allocated"] - 1 if told["allocated"] else None
    return cell | {"card": card.name, **told, "off": off, "seconds": round(time.monotonic() - began, 1)}


def key(card: str, cell: dict[str, Any]) -> str:
    """What tells a cell from all others, before and after it was measured."""
    asked = ("experiment", "base", "rows", "length", "packed", "way", "knobs")
    return json.dumps([card, {name: cell[name] for name in asked if name in cell}], sort_keys=True)


def versions_of(python: str) -> dict[str, Any]:
    """The versions in the null card's environment, which is not this one."""
    code = "import json, machine; print(json.dumps(machine.versions()))"
    done = subprocess.run([python, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--go-on", action="store_true", help="keep the cells that the file of results has")
    args = parser.parse_args()
    python = str(environment())
    work = {key(card.name, cell): (card, cell) for card in CARDS for cell in cells(card)}
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if args.go_on else []
    found = {key(one["card"], one): one for one in kept}
    left = [one for name, one in work.items() if name not in found]

    head = {"about": ABOUT, "machine": hardware(), "versions": versions_of(python)}

    def write() -> None:
        told = head | {"cells": [found[name] for name in work if name in found]}
        RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def share(number: int) -> None:
        null_card = NullCard(python)
        for card, cell in left[number :: args.processes]:
            done = measure(null_card, card, cell)
            found[key(card.name, cell)] = done
            off = "out of memory" if done["off"] is None else f"{done['off']:+.1%}"
            print(
                f"{card.name:28} {cell['base']:26} {done['length']} {cell['knobs']} {off} {done['verdict']}", flush=True
            )
            write()
        null_card.close()

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(share, range(args.processes)))
    write()
    print(json.dumps(summary([found[name] for name in work]), indent=1))


if __name__ == "__main__":
    main()
