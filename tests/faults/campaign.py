"""The fault campaign: `python -m tests.faults [--tries N] [--seed N] [--only NAME ...] [--out docs/faults.md]`.

Every try is a fault done for real, at a random moment, to real child processes training a small model, in a folder of
its own; afterwards the folder must hold what it held, and training must end as if nothing had been.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qlora_gui.runs import launch
from tests.faults import disks, killing, stops
from tests.faults.ground import Ground, LostError, ended, losses

Fault = Callable[[Ground], None]
# Each with its share of the tries of the long campaign; of the first at least 100.
FAULTS: dict[Fault, int] = {
    killing.trainer: 100,
    killing.page: 6,
    killing.worker: 6,
    killing.evaluation: 5,
    killing.starter: 6,
    killing.sleeper: 6,
    disks.full: 12,
    disks.read_only: 6,
    disks.garbage: 3,
    disks.half_lines: 30,
    disks.rotted: 10,
    disks.full_of_votes: 20,
    stops.at_any_moment: 20,
    stops.that_hangs: 2,
    stops.ctrl_c_twice: 10,
    stops.two_starts: 5,
    stops.clock_jumps: 5,
    stops.no_room_for_two: 20,
}


@dataclass
class Result:
    """How a fault went: tries, seconds, and the seed and reason of each loss."""

    tries: int = 0
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)


def name_of(fault: Fault) -> str:
    return f"{fault.__module__.rpartition('.')[2]}.{fault.__name__}"


def uninterrupted(base: Path, folder: Path) -> dict[int, float]:
    """The losses of a run that nothing happens to."""
    ground = Ground(folder, base, random.Random(0))
    run = ground.create()
    ground.start(run)
    if ended(run) != "finished":
        raise AssertionError(f"an undisturbed run failed:\n{run.log_tail(30)}")
    return losses(run)


def attempt(fault: Fault, seed: int, base: Path, expected: dict[int, float], parent: Path) -> str:
    """One try; "" or what was lost."""
    folder = Path(tempfile.mkdtemp(prefix="fault-", dir=parent))
    ground = Ground(folder, base, random.Random(f"{name_of(fault)} {seed}"), expected)
    try:
        fault(ground)
        return ""
    except LostError as error:
        return f"seed {seed}: {error}"
    except Exception:  # a reader that raises is a loss too
        return f"seed {seed}: {traceback.format_exc()}"
    finally:
        for run in ground.store.all():
            launch.kill(run)
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=float, default=1.0, help="times the usual number of tries (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--only", nargs="+", default=[], help="faults by name, like killing.trainer")
    parser.add_argument("--out", type=Path, help="where the table goes, as Markdown")
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.small_models import make_llama

    with tempfile.TemporaryDirectory(prefix="faults-") as parent:
        os.environ["QLORA_GUI_CACHE"] = f"{parent}/cache"
        base = make_llama(Path(parent) / "base")
        expected = uninterrupted(base, Path(parent) / "undisturbed")
        results: dict[str, Result] = {}
        for fault, share in FAULTS.items():
            if given.only and name_of(fault) not in given.only:
                continue
            result = results.setdefault(name_of(fault), Result())
            for seed in range(given.seed, given.seed + max(round(share * given.tries), 1)):
                began = time.monotonic()
                if lost := attempt(fault, seed, base, expected, Path(parent)):
                    result.lost.append(lost)
                    print(f"LOST {name_of(fault)} {lost}", flush=True)
                result.tries += 1
                result.seconds += time.monotonic() - began
            print(f"{name_of(fault):26} {result.tries:4} tries, lost {len(result.lost)}", flush=True)
            if given.out:
                given.out.write_text(table(results), encoding="utf-8")
    return 1 if any(result.lost for result in results.values()) else 0


def table(results: dict[str, Result]) -> str:
    """The campaign as Markdown."""
    about = {name_of(fault): (fault.__doc__ or "").strip() for fault in FAULTS}
    lines = ["| fault | what is done, and what must hold | tries | lost |", "|---|---|--:|--:|"]
    for name, result in results.items():
        lines.append(f"| `{name}` | {about[name]} | {result.tries} | {len(result.lost)} |")
    tries, lost = (sum(values) for values in zip(*((r.tries, len(r.lost)) for r in results.values()), strict=True))
    minutes = sum(result.seconds for result in results.values()) / 60
    day = time.strftime("%Y-%m-%d")
    head = (
        "# Fault campaign\n\nMade by `python -m tests.faults --out docs/faults.md`; a seeded part of it runs in CI, among the "
        "tests marked `slow`. Every try does its fault for real, at a random moment, to real child processes that train a "
        "small model, in a folder of its own. *Lost* counts tries after which something kept was gone, a state was not told "
        "as it is, a half file passed for a whole one, or training did not end with the losses of a run that nothing "
        "happened to.\n\n"
        f"{day}, Python {sys.version.split()[0]}, CPU: {tries} tries in {minutes:.0f} minutes, lost {lost}.\n\n"
    )
    return head + "\n".join([*lines, f"| **all** | | **{tries}** | **{lost}** |"]) + "\n"
