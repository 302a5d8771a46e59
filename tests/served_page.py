"""The page as people start it, in a process of its own, for tests that attack it with plain requests."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]


@dataclass
class Page:
    """A page that is served over `folder`/adapters. `said` is what it printed until it was open."""

    url: str
    token: str
    pid: int
    folder: Path
    said: str


@contextmanager
def opened(folder: Path, *words: str, **env: str) -> Iterator[Page]:
    """`python app.py` with these flags, started in `folder`, with a cache of its own there."""
    environment = os.environ | {"QLORA_GUI_CACHE": str(folder / "cache")} | env
    child = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "app.py"), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert child.stdout
    said = ""
    try:
        for line in child.stdout:
            said += line
            if found := re.search(r"The page is at (http://\S+)", said):
                break
        else:
            raise AssertionError(f"the page did not open:\n{said}")
        url, _, token = found.group(1).partition("/?token=")
        if not token and "--no-token" not in words:  # it says how to log in
            said += child.stdout.readline()
        yield Page(url.rstrip("/"), token, child.pid, folder, said)
    finally:
        child.terminate()
        child.wait(20)


class Visitor:
    """What a browser asks of the page, without the browser; `client` has been let in."""

    def __init__(self, client: httpx.Client):
        self.client = client
        config = client.get("/config").raise_for_status().json()
        self.listeners: list[dict[str, Any]] = config["dependencies"]
        self.parts: dict[int, dict[str, Any]] = {one["id"]: one for one in config["components"]}

    def name(self, part: int) -> str:
        """The id that a component has on the page, "" for none."""
        return self.parts[part]["props"].get("elem_id") or "" if part in self.parts else ""

    def of(self, name: str, event: str = "click") -> dict[str, Any]:
        """The listener to an event of the component with that id on the page."""
        return next(
            one for one in self.listeners for part, told in one["targets"] if (self.name(part), told) == (name, event)
        )

    def call(self, listener: dict[str, Any], values: Mapping[str, Any] | None = None) -> list[Any]:
        """Call a listener; fields are as they come but for `values` by id on the page.

        Gives what was sent back, without what differs from call to call: outputs, and the messages at the corner.
        """
        given = values or {}
        data = [given.get(self.name(part), self._value(part)) for part in listener["inputs"]]
        session = os.urandom(5).hex()
        body = {"fn_index": listener["id"], "data": data, "session_hash": session}
        asked = self.client.post("/gradio_api/queue/join", json=body)
        if asked.status_code != 200:
            return [asked.status_code, asked.text]
        told = []
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
            for line in filter(None, answer.iter_lines()):
                one = json.loads(line.removeprefix("data: "))
                if one["msg"] in ("process_generating", "process_completed"):
                    told.append([one["success"], one["output"].get("data"), one["output"].get("error")])
                elif one["msg"] == "log":
                    told.append(one["log"])
                if one["msg"] in ("process_completed", "close_stream"):
                    break
        return told

    def upload(self, name: str, body: bytes) -> str:
        """Upload a data file by its button; the path that the form then has."""
        files = {"files": (name, body)}
        path = self.client.post("/gradio_api/upload", files=files).raise_for_status().json()[0]
        meta = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        told = self.call(self.of("upload", "upload"), {"upload": meta})
        return str(told[-1][1][0])

    def _value(self, part: int) -> Any:
        if part not in self.parts:
            return None
        one = self.parts[part]
        return [] if one["type"] == "dropdown" and not one["props"].get("value") else one["props"].get("value")


@contextmanager
def visiting(page: Page) -> Iterator[Visitor]:
    """A visitor of a page that opens by its token."""
    with httpx.Client(base_url=page.url, headers={"Authorization": f"Bearer {page.token}"}, timeout=120) as client:
        yield Visitor(client)


USER, PASSWORD = "owner", "correct horse battery"


def login(client: httpx.Client, password: str, **headers: str) -> httpx.Response:
    return client.post("/login", data={"username": USER, "password": password}, headers=headers)


def call(owner: httpx.Client, number: int, data: list[Any]) -> str:
    """Call a listener as the page's own script does; everything it streamed back."""
    session = os.urandom(5).hex()
    asked = {"fn_index": number, "data": data, "session_hash": session, "event_data": None, "trigger_id": None}
    owner.post("/gradio_api/queue/join", json=asked).raise_for_status()
    with owner.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if "process_completed" in line or "close_stream" in line:
                break
    return "\n".join(lines)
