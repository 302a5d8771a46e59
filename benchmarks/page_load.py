"""What browsers cost that follow a run, and what those that compare: `python benchmarks/page_load.py`.

A page is served and a small model trained, in processes of their own, a thread for the trainer. In turns nobody asks, 20
sessions call the timers that a browser with the Train tab open calls, as often as it does, and 5 more those of Compare,
and compare a base and an adapter, prompt after prompt. Prints the 95th percentile of the timers' answers, and the
training's speed beside that of the quiet turn before; writes benchmarks/results/page_load.json. Page, compare process
and the 25 sessions share the trainer's processor, so on two cores each costs the training some of its time.
"""

import argparse
import asyncio
import json
import operator
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # the trainer's: a core is left for the page

import httpx  # noqa: E402
from machine import hardware, versions  # noqa: E402

from qlora_gui.config import make  # noqa: E402
from qlora_gui.runs import launch  # noqa: E402
from qlora_gui.runs.store import Run, RunStore  # noqa: E402
from tests.small_models import make_llama  # noqa: E402

MOST_SECONDS, MOST_LOSS = 1.0, 0.05
TURNS = 12
BROWSERS, COMPARING = 20, 5
ADAPTER = "compared"


def serve(store: RunStore) -> tuple[subprocess.Popen[bytes], str]:
    """The page in a child, and its address with its token."""
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
    return child, found.group(1)


class Session:
    """What a browser asks of the page, without the browser: one thing after the other."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any]):
        self.client, self.dependencies = client, config["dependencies"]
        self.parts = {one["id"]: one for one in config["components"]}
        self.key = f"{random.getrandbits(40):x}"
        self._turn = asyncio.Lock()

    def button(self, name: str) -> dict[str, Any]:
        """The listener to a click on the component with that id on the page."""
        return next(one for one in self.dependencies for part, _ in one["targets"] if self._name(part) == name)

    async def call(
        self, listener: dict[str, Any], values: dict[str, Any] | None = None, times: list[float] | None = None
    ) -> str:
        """Call a listener, and what the page calls after it; gives all that was sent back.

        Fields are as they come, but for `values` by id on the page. `times` gets the seconds of every call.
        """
        asked = time.monotonic()
        told = await self._one(listener, values or {})
        if times is not None:
            times.append(time.monotonic() - asked)
        changed = json.loads(told[-1].removeprefix("data: "))["output"].get("changed_state_ids") or ()
        everything = "\n".join(told)
        for after in self.dependencies:
            follows = after["trigger_after"] == listener["id"]
            if after["backend_fn"] and (follows or any([part, "change"] in after["targets"] for part in changed)):
                everything += await self.call(after, values, times)
        return everything

    async def _one(self, listener: dict[str, Any], values: dict[str, Any]) -> list[str]:
        """The messages of one call, up to the one that completes it."""
        data = [values.get(self._name(part), self._value(part)) for part in listener["inputs"]]
        body = {"fn_index": listener["id"], "data": data, "session_hash": self.key}
        told = []
        async with self._turn:
            (await self.client.post("/gradio_api/queue/join", json=body)).raise_for_status()
            async with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.key}) as answer:
                async for line in answer.aiter_lines():
                    told.append(line)
                    if "process_completed" in line:
                        break
        return told

    def _name(self, part: int) -> str:
        return self.parts[part]["props"].get("elem_id") or "" if part in self.parts else ""

    def _value(self, part: int) -> Any:
        one = self.parts[part]
        return [] if one["type"] == "dropdown" and not one["props"].get("value") else one["props"].get("value")


def timers(config: dict[str, Any], shown: str) -> list[tuple[dict[str, Any], float]]:
    """Listener and seconds of every timer outside of the tabs, and in the one that is shown: the others do not tick yet."""
    parts = {one["id"]: one for one in config["components"]}
    seconds: dict[int, float] = {}

    def walk(node: dict[str, Any]) -> None:
        part = parts.get(node["id"])
        if part and part["type"] == "tabitem" and part["props"]["id"] != shown:
            return
        if part and part["type"] == "timer":
            seconds[node["id"]] = part["props"]["value"]
        for child in node.get("children") or ():
            walk(child)

    walk(config["layout"])
    found = [(one, part) for one in config["dependencies"] for part, told in one["targets"] if told == "tick"]
    return [(one, seconds[part]) for one, part in found if part in seconds]


@dataclass
class Browser:
    """A page that was opened: its timers, and another session that asks."""

    session: Session
    asking: Session
    timers: list[tuple[dict[str, Any], float]]

    @classmethod
    async def opened(cls, client: httpx.AsyncClient, shown: str) -> "Browser":
        config = (await client.get("/config")).json()
        found = cls(Session(client, config), Session(client, config), timers(config, shown))
        for listener, _ in found.timers:
            await found.session.call(listener)
        return found

    async def follow(self, until: float, times: list[float]) -> None:
        """Call the timers as often as they tick; the seconds of every answer go to `times`."""

        async def ticking(listener: dict[str, Any], seconds: float) -> None:
            await asyncio.sleep(random.uniform(0, seconds))
            while time.monotonic() < until:
                asked = time.monotonic()
                await self.session.call(listener, times=times)
                await asyncio.sleep(max(asked + seconds - time.monotonic(), 0))

        await asyncio.gather(*(ticking(*timer) for timer in self.timers))

    async def compare(self, until: float, base: str, answers: list[float]) -> None:
        """Ask base and adapter, prompt after prompt; the seconds of each go to `answers`."""
        values = {"base": base, "adapters": [ADAPTER], "prompt": "Where is my parcel?", "decoding-max_new_tokens": 48}
        while time.monotonic() < until:
            asked = time.monotonic()
            told = await self.asking.call(self.asking.button("send"), values)
            if "tokens/s" not in told:
                raise SystemExit(f"no answer: {told[:2000]}")
            answers.append(time.monotonic() - asked)
            await self.asking.call(self.asking.button("clear"), values)  # else the conversation outgrows the model


def steps(run: Run) -> int:
    return max((event["step"] for event in run.events()[0] if event["kind"] == "step"), default=0)


async def measured(run: Run, url: str, base: str, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Per kind of turn: the training's steps a second, the seconds of the timers' answers, and of compared answers."""
    found: dict[str, dict[str, list[float]]] = {
        kind: {"steps_per_second": [], "timers": [], "compared": []} for kind in ("quiet", "following", "comparing")
    }
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=httpx.URL(url).copy_with(query=None), timeout=300, limits=limits) as client:
        (await client.get(url, follow_redirects=True)).raise_for_status()  # in by the token: it leaves its cookie
        following = [await Browser.opened(client, "train") for _ in range(BROWSERS)]
        comparing = [await Browser.opened(client, "compare") for _ in range(COMPARING)]
        for one in comparing:  # the compare process starts
            await one.compare(time.monotonic() + 0.1, base, [])
        for _ in range(TURNS):
            for kind, here in found.items():
                first, began = steps(run), time.monotonic()
                busy = [asyncio.sleep(seconds)]
                if kind != "quiet":
                    busy += [one.follow(began + seconds, here["timers"]) for one in following]
                if kind == "comparing":
                    busy += [one.follow(began + seconds, here["timers"]) for one in comparing]
                    busy += [one.compare(began + seconds, base, here["compared"]) for one in comparing]
                await asyncio.gather(*busy)
                here["steps_per_second"].append((steps(run) - first) / (time.monotonic() - began))
                print(f"{kind}: {here['steps_per_second'][-1]:.2f} steps/s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each turn (default: 10)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder) / "adapters")
        store.root.mkdir()
        base = str(make_llama(Path(folder) / "base"))
        knobs = {"base_model": base, "logging_steps": 1, "probe_prompts": 0, "gradient_accumulation": 1}
        compared = store.create(make(knobs | {"name": ADAPTER, "max_steps": 5}))
        launch.start(compared, store)
        while compared.is_live():
            time.sleep(0.2)
        run = store.create(make(knobs | {"max_steps": 100_000, "save_steps": 100_000, "eval_steps": 100_000}))
        child, url = serve(store)
        try:
            launch.start(run, store)
            while steps(run) < 20:
                time.sleep(0.2)
            found = asyncio.run(measured(run, url, base, seconds))
        finally:
            launch.kill(run)
            child.terminate()
            child.wait(20)
    report(found, seconds)


def report(found: dict[str, dict[str, list[float]]], seconds: float) -> None:
    quiet = found["quiet"]["steps_per_second"]
    result: dict[str, Any] = {"benchmark": "page_load", "browsers": BROWSERS, "comparing": COMPARING}
    result |= {"seconds_of_a_turn": seconds, "quiet_steps_per_second": quiet}
    for kind in ("following", "comparing"):
        here = found[kind]
        ratio = statistics.median(map(operator.truediv, here["steps_per_second"], quiet))
        slowest = statistics.quantiles(here["timers"], n=20)[-1]
        told = {"answers": len(here["timers"]), "median_seconds": statistics.median(here["timers"])}
        told |= {"percentile_95_seconds": slowest, "training_speed_ratio": ratio}
        told |= {"steps_per_second": here["steps_per_second"], "compared_answers": len(here["compared"])}
        if here["compared"]:
            told["compared_median_seconds"] = statistics.median(here["compared"])
        result[kind] = told
        print(f"{kind}: 95th percentile of {told['answers']} answers {slowest:.3f} s   to reach: < {MOST_SECONDS}")
        print(f"{kind}: training speed of the quiet one {ratio:.3f}   to reach: > {1 - MOST_LOSS}")
    result |= {"machine": hardware(), "versions": versions()}
    out = ROOT / "benchmarks" / "results" / "page_load.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
