"""A page over 2,000 runs, one of them of 1,000,000 events: `python benchmarks/page_scale.py [--before COMMIT]`.

Makes the folders, serves the page in a process of its own, and asks over HTTP what a browser asks: each view as a link opens
it, what its timer asks then, a run chosen, the long one too, and words looked for. First with an empty cache, then again and
again, then by a page that was started anew. `--before` serves the page of another commit (by git worktree) over the same
folders in the same way. Prints the seconds of each answer, and those that the page's process computed meanwhile, which a busy
machine does not lengthen; writes benchmarks/results/page_scale.json.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import httpx  # noqa: E402
import psutil  # noqa: E402
from machine import hardware, versions  # noqa: E402
from page_load import Session, timers  # noqa: E402

from tests.many_runs import LONG, make_runs  # noqa: E402

RUNS, EVENTS, MOST_SECONDS = 2000, 1_000_000, 0.3
ONE = "run-0005"
SHOWS = {"runs": "runs-table", "compare": "adapters", "report": "report-runs"}  # what a view draws first
Times = dict[str, list[tuple[float, float]]]


def serve(tree: Path, adapters: Path, cache: Path) -> tuple[psutil.Popen, str]:
    """The page of a working tree, with a cache of its own, and its address with its token."""
    code = (
        "import sys; from qlora_gui.runs.store import RunStore; from qlora_gui.ui.address import Address; "
        "from qlora_gui.ui.app import launch_page; launch_page(RunStore(sys.argv[1]), Address())"
    )
    said = cache.with_suffix(".log")
    with said.open("wb") as log:
        command = [sys.executable, "-u", "-c", code, str(adapters)]
        environment = os.environ | {"QLORA_GUI_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        child = psutil.Popen(command, cwd=tree, stdout=log, stderr=subprocess.STDOUT, env=environment)
    while "The page is at" not in said.read_text():
        if child.poll() is not None:
            raise SystemExit(said.read_text())
        time.sleep(0.1)
    return child, said.read_text().partition("The page is at ")[2].split()[0]


class Asking(Session):
    """A browser that was opened at an address."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any], query: str):
        super().__init__(client, config)
        self.query = query

    async def _one(self, listener: dict[str, Any], values: dict[str, Any]) -> list[str]:
        post = self.client.post

        async def with_query(address: str, **more: Any) -> httpx.Response:
            return await post(address + self.query, **more)

        self.client.post = with_query  # type: ignore[method-assign]
        try:
            return await super()._one(listener, values)
        finally:
            self.client.post = post  # type: ignore[method-assign]


class Questions:
    """What is asked of one page, and how long each answer took: seconds, and those of the page's processor."""

    def __init__(self, client: httpx.AsyncClient, page: psutil.Popen, config: dict[str, Any]):
        self.client, self.page, self.config = client, page, config
        self.found: Times = {}

    def listeners(self, target: str, event: str) -> list[dict[str, Any]]:
        """The listeners to an event of the component with that id on the page."""
        session = Session(self.client, self.config)
        pairs = [(one, part, told) for one in self.config["dependencies"] for part, told in one["targets"]]
        return [one for one, part, told in pairs if told == event and session._name(part) == target]

    def ticks(self, shown: str) -> list[dict[str, Any]]:
        """What the timers of a tab ask while it is shown; of "" those that always tick."""
        always = [one for one, _ in timers(self.config, "")]
        return [one for one, _ in timers(self.config, shown) if one not in always] if shown else always

    async def timed(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        before, began = sum(self.page.cpu_times()[:2]), time.monotonic()
        await ask()
        seconds, computed = time.monotonic() - began, sum(self.page.cpu_times()[:2]) - before
        self.found.setdefault(name, []).append((seconds, computed))
        print(f"    {name:<36} {seconds:8.3f} s, computed {computed:6.2f} s", flush=True)

    async def calls(self, listeners: list[dict[str, Any]], values: dict[str, Any], session: Session) -> None:
        """Call listeners and what follows each, one after the other; a browser asks other tabs' at the same time."""
        for one in listeners:
            await session._one(one, values)
            then = [after for after in self.config["dependencies"] if after["trigger_after"] == one["id"]]
            await self.calls([after for after in then if after["backend_fn"]], values, session)

    async def open(self, view: str) -> None:
        """What a link to a view asks for, until its list is drawn and what is chosen in it."""
        session = Asking(self.client, self.config, f"?tab={view}")
        load = next(one for one in self.config["dependencies"] if one["backend_fn"] and _is_load(one))
        await session._one(load, {})
        links = [
            one for part in load["outputs"] for one in self.config["dependencies"] if [part, "change"] in one["targets"]
        ]
        own = [one for one in links if SHOWS[view] in map(session._name, one["outputs"])]
        await self.calls(own, {}, session)

    async def turn(self) -> None:
        """Every question once, as a browser of its own."""
        await self.timed("the page itself", lambda: self.client.get("/config"))
        plain = Asking(self.client, self.config, "")
        await self.timed("header: its timer", lambda: self.calls(self.ticks(""), {}, plain))
        for view in ("runs", "compare", "report"):
            session = Asking(self.client, self.config, f"?tab={view}")
            await self.timed(f"{view}: opened", lambda v=view: self.open(v))
            await self.timed(f"{view}: its timers", lambda v=view, s=session: self.calls(self.ticks(v), {}, s))
        for name, run in (("a run chosen", ONE), ("the long run chosen", LONG)):
            session = Asking(self.client, self.config, "")
            chosen = {"chosen": [run]}
            await self.timed(
                f"runs: {name}", lambda c=chosen, s=session: self.calls(self.listeners("chosen", "change"), c, s)
            )
        if found := self.listeners("runs-find", "change"):
            await self.timed("runs: words sought", lambda: self.calls(found, {"runs-find": "qwen run-1"}, plain))


def _is_load(listener: dict[str, Any]) -> bool:
    return any(told == "load" for _, told in listener["targets"])


async def asked(page: psutil.Popen, url: str, turns: int, rest: float) -> Times:
    async with httpx.AsyncClient(base_url=httpx.URL(url).copy_with(query=None), timeout=900) as client:
        (await client.get(url, follow_redirects=True)).raise_for_status()  # in by the token: it leaves its cookie
        questions = Questions(client, page, (await client.get("/config")).json())
        for _ in range(turns):
            await questions.turn()
            await asyncio.sleep(rest)
        return questions.found


def measured(tree: Path, adapters: Path, cache: Path, turns: int) -> dict[str, Times]:
    """A page with an empty cache, once it has read everything, and started anew."""
    found: dict[str, Times] = {}
    page, url = serve(tree, adapters, cache)
    try:
        print("  with an empty cache, the first time", flush=True)
        found["first, empty cache"] = asyncio.run(asked(page, url, 1, 0))
        _quiet(page)
        print("  again", flush=True)
        found["again"] = asyncio.run(asked(page, url, turns, 1.5))
    finally:
        page.terminate()
        page.wait(30)
    page, url = serve(tree, adapters, cache)
    try:
        print("  started anew", flush=True)
        found["first, started anew"] = asyncio.run(asked(page, url, 1, 0))
    finally:
        page.terminate()
        page.wait(30)
    return found


def _quiet(page: psutil.Popen, most: float = 600) -> None:
    """Wait until the page has nothing to do any more."""
    until = time.monotonic() + most
    while time.monotonic() < until:
        before = sum(page.cpu_times()[:2])
        time.sleep(3)
        if sum(page.cpu_times()[:2]) - before < 0.3:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--before", metavar="COMMIT", help="also measure the page of this commit")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the folders here, or take those that are there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page-scale-") as scratch:
        folder = Path(scratch)
        adapters = given.keep or folder / "adapters"
        if not adapters.is_dir():
            print(f"Making {given.runs:,} runs", flush=True)
            make_runs(adapters, given.runs, given.events)
        told: dict[str, dict[str, Times]] = {}
        if given.before:
            tree = folder / "before"
            subprocess.run(["git", "worktree", "add", "--detach", str(tree), given.before], cwd=ROOT, check=True)
            try:
                print(f"{given.before}:", flush=True)
                told["before"] = measured(tree, adapters, folder / "cache-before", 1)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
        print("This tree:", flush=True)
        told["now"] = measured(ROOT, adapters, folder / "cache-now", given.turns)
    report(told, given)


def report(told: dict[str, dict[str, Times]], given: argparse.Namespace) -> None:
    result: dict[str, Any] = {"benchmark": "page_scale", "runs": given.runs, "events_of_the_long_run": given.events}
    result |= {"before_commit": given.before, "load_average": os.getloadavg(), "seconds": {}, "computed_seconds": {}}
    for which, times in told.items():
        for when, questions in times.items():
            key = f"{which}: {when}"
            result["seconds"][key] = {name: round(_median(found, 0), 3) for name, found in questions.items()}
            result["computed_seconds"][key] = {name: round(_median(found, 1), 3) for name, found in questions.items()}
    slow = {
        f"{when}, {name}": _median(found, 0)
        for when, questions in told["now"].items()
        for name, found in questions.items()
        if _median(found, 0) > MOST_SECONDS
    }
    print(
        f"Over {MOST_SECONDS} s now: " + (", ".join(f"{name} {value:.2f} s" for name, value in slow.items()) or "none")
    )
    result |= {"machine": hardware(), "versions": versions()}
    out = ROOT / "benchmarks" / "results" / "page_scale.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


def _median(found: list[tuple[float, float]], which: int) -> float:
    return statistics.median(one[which] for one in found)


if __name__ == "__main__":
    main()
