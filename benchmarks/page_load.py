"""What twenty browsers cost that follow one run: `python benchmarks/page_load.py [--browsers N] [--seconds N]`.

A page is served and a small model trained, in processes of their own. In turns nobody asks, and N sessions call every timer
of the page as often as a browser does. Prints the 95th percentile of an answer's time and the training's speed beside that
of the quiet turns; writes benchmarks/results/page_load.json. On two cores page and training share the processor.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the trainer's: a core is left for the page

import httpx  # noqa: E402
from machine import hardware, versions  # noqa: E402

from qlora_gui.runs import launch  # noqa: E402
from qlora_gui.runs.config import make  # noqa: E402
from qlora_gui.runs.store import Run, RunStore  # noqa: E402
from qlora_gui.ui.theme import TICK_SECONDS  # noqa: E402
from tests.models import make_llama  # noqa: E402

MOST_SECONDS, MOST_LOSS = 1.0, 0.05
TURNS = 3


def serve(store: RunStore) -> tuple[subprocess.Popen[bytes], str]:
    """The page in a child, and its address."""
    code = (
        "import sys; from qlora_gui.runs.store import RunStore; from qlora_gui.ui.address import Address; "
        "from qlora_gui.ui.app import launch_page; launch_page(RunStore(sys.argv[1]), Address())"
    )
    said = store.root.parent / "page.log"
    with said.open("wb") as log:
        command = [sys.executable, "-u", "-c", code, str(store.root)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    while not (found := re.search(r"The page is at (\S+)", said.read_text())):
        if child.poll() is not None:
            raise SystemExit(said.read_text())
        time.sleep(0.1)
    return child, found.group(1).rstrip("/")


async def browser(url: str, until: float, times: list[float]) -> None:
    """One session: the page once, then all its timers as often as they tick; the seconds of every answer go to `times`."""
    await asyncio.sleep(random.uniform(0, TICK_SECONDS))
    session = f"{random.getrandbits(40):x}"
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        config = (await client.get("/config")).json()
        kinds = {one["id"]: one["type"] for one in config["components"]}
        ticks = [one for one in config["dependencies"] if any(event == "tick" for _, event in one["targets"])]
        while time.monotonic() < until:
            began = time.monotonic()
            for tick in ticks:
                asked = time.monotonic()
                data: list[Any] = [[] if kinds[number] == "dropdown" else None for number in tick["inputs"]]
                body = {"fn_index": tick["id"], "data": data, "session_hash": session}
                (await client.post("/gradio_api/queue/join", json=body)).raise_for_status()
                async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
                    async for line in answer.aiter_lines():
                        if "process_completed" in line:
                            break
                times.append(time.monotonic() - asked)
            await asyncio.sleep(max(TICK_SECONDS - (time.monotonic() - began), 0))


async def crowd(url: str, count: int, seconds: float, times: list[float]) -> None:
    until = time.monotonic() + seconds
    await asyncio.gather(*(browser(url, until, times) for _ in range(count)))


def steps(run: Run) -> int:
    return max((event["step"] for event in run.events()[0] if event["kind"] == "step"), default=0)


def speed(run: Run, seconds: float, busy: Any) -> float:
    """Optimizer steps a second while `busy` runs, or while nothing does."""
    first, began = steps(run), time.monotonic()
    if busy is None:
        time.sleep(seconds)
    else:
        asyncio.run(busy)
    return (steps(run) - first) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browsers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20, help="of each turn (default: 20)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "adapters")
        store.root.mkdir()
        knobs = {"base_model": str(make_llama(Path(folder) / "base")), "max_steps": 100_000, "logging_steps": 1}
        knobs |= {"save_steps": 100_000, "eval_steps": 100_000, "probe_prompts": 0, "gradient_accumulation": 1}
        run = store.create(make(knobs))
        child, url = serve(store)
        quiet: list[float] = []
        loaded: list[float] = []
        times: list[float] = []
        try:
            launch.start(run, store)
            while steps(run) < 20:
                time.sleep(0.2)
            for _ in range(TURNS):
                quiet.append(speed(run, given.seconds, None))
                loaded.append(speed(run, given.seconds, crowd(url, given.browsers, given.seconds, times)))
                print(f"quiet {quiet[-1]:.2f} steps/s, {given.browsers} browsers {loaded[-1]:.2f}", flush=True)
        finally:
            launch.kill(run)
            child.terminate()
            child.wait(20)
    ratio = statistics.median(loaded) / statistics.median(quiet)
    slowest = statistics.quantiles(times, n=20)[-1]
    print(
        f"\nanswers: {len(times)}, median {statistics.median(times):.3f} s, 95th percentile {slowest:.3f} s   to reach: < {MOST_SECONDS}"
    )
    print(f"training speed beside quiet turns: {ratio:.3f}   to reach: > {1 - MOST_LOSS}")
    result = {
        "benchmark": "page_load",
        "browsers": given.browsers,
        "seconds_of_a_turn": given.seconds,
        "answers": len(times),
        "median_seconds": statistics.median(times),
        "percentile_95_seconds": slowest,
        "training_speed_ratio": ratio,
        "steps_per_second": {"quiet": quiet, "loaded": loaded},
        "machine": hardware(),
        "versions": versions(),
    }
    out = ROOT / "benchmarks" / "results" / "page_load.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
