"""Secrets stay with the place they are for: real servers that send whoever asks on to another one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.preferences import llm_judge
from tests.judge_endpoint import human
from tests.security.attacks import Attempts

TOKEN = "hf_secretsecretsecret"
ROW = "the hub's token and the judge's key after a redirect"
FILE = b'{"model_type": "llama"}'
COMMIT = "0" * 40


class Place:
    """A server that keeps what it was sent as Authorization; `to` makes it send everybody on."""

    def __init__(self, to: Callable[[str], str | None] = lambda path: None, name: str = "127.0.0.1"):
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.seen.append((self.path, self.headers.get("Authorization")))
                there = to(self.path)
                self.send_response(307 if there else 200)
                if there:
                    self.send_header("Location", there)
                for header, value in {"ETag": '"abc"', "X-Repo-Commit": COMMIT, "X-Linked-Size": len(FILE)}.items():
                    self.send_header(header, str(value))
                body = b"" if there else FILE
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = _any

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://{name}:{self.server.server_port}"

    @property
    def keys(self) -> list[str | None]:
        """What came as Authorization."""
        return [key for _, key in self.seen]


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    """The hub, and another host to which it sends whoever asks; names that were changed it sends to itself first."""
    other = Place(name="localhost")

    def to(path: str) -> str | None:
        return path.replace("/old/", "/new/") if "/old/" in path else f"{other.url}{path}"

    first = Place(to)
    yield first, other
    for place in (first, other):
        place.server.shutdown()


@pytest.mark.attack(ROW)
def test_the_programs_own_questions(
    places: tuple[Place, Place], monkeypatch: pytest.MonkeyPatch, attempt: Attempts
) -> None:
    first, other = places
    monkeypatch.setenv("HF_ENDPOINT", first.url)
    monkeypatch.setattr(hub, "_token", lambda: TOKEN)
    monkeypatch.setattr(hub, "answers", lambda: True)
    hub.require("models", "old/name")
    assert hub.fetch_json("old/name", "config.json") == json.loads(FILE)
    assert len(other.seen) == 2 and len(first.seen) == 4
    assert first.keys == [f"Bearer {TOKEN}"] * 4  # a changed name of the same hub is asked for with it
    for path, key in other.seen:
        attempt(key is None, path)


@pytest.mark.attack(ROW)
def test_a_port_or_a_scheme_is_another_place(monkeypatch: pytest.MonkeyPatch, attempt: Attempts) -> None:
    other = Place()
    first = Place(lambda path: f"{other.url}{path}")
    monkeypatch.setenv("HF_ENDPOINT", first.url)
    monkeypatch.setattr(hub, "_token", lambda: TOKEN)
    assert hub.fetch_json("some/name", "config.json")
    attempt(other.keys == [None], "another port")
    attempt(hub._place("https://hub.example/x") != hub._place("http://hub.example/x"), "without encryption")
    for place in (first, other):
        place.server.shutdown()


@pytest.mark.attack(ROW)
def test_downloads_by_the_hubs_library(places: tuple[Place, Place], tmp_path: Path, attempt: Attempts) -> None:
    """The library that fetches bases and data sets: whatever it is sent to, the token is for the hub alone."""
    first, other = places
    code = (
        "from huggingface_hub import HfApi, hf_hub_download\n"
        "for what in (lambda: hf_hub_download('old/name', 'config.json'), lambda: HfApi().model_info('some/name')):\n"
        "    try: print(what())\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    env = os.environ | {"HF_ENDPOINT": first.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert f"Bearer {TOKEN}" in first.keys and other.seen, done.stdout + done.stderr
    for path, key in other.seen:
        attempt(key is None, path)


@pytest.mark.attack(ROW)
def test_the_judges_key(monkeypatch: pytest.MonkeyPatch, attempt: Attempts) -> None:
    other = Place(name="localhost")
    first = Place(lambda path: f"{other.url}{path}")
    monkeypatch.setenv(llm_judge.KEY, TOKEN)
    monkeypatch.setenv(llm_judge.PIN, first.url)
    with pytest.raises(UserError, match="status 307"):
        list(llm_judge.judge_votes(llm_judge.Judge(f"{first.url}/v1", "big-judge", 5), [human(1)], lambda vote: None))
    attempt(first.keys == [f"Bearer {TOKEN}"] and not other.seen, "redirected")
    for place in (first, other):
        place.server.shutdown()


@pytest.mark.attack("a hub data set whose card names files of this machine")
def test_a_card_tells_nothing_of_the_files_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Attempts
) -> None:
    """Refused by its card, before anything looks for the files: there or not, it says the same, and no address is asked."""
    from qlora_gui.data import load

    asked = Place()
    (tmp_path / "there.jsonl").write_text('{"prompt": "a", "completion": "secret"}\n')
    monkeypatch.setattr(hub, "require", lambda *what: None)
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, repo_type: str(tmp_path / "cards" / file))
    cards = tmp_path / "cards"
    cards.mkdir()
    for named in (f"{tmp_path}/*.jsonl", f"{tmp_path}/gone.jsonl", "../../etc/passwd", "~/x.jsonl", f"{asked.url}/x.json",
                  f"zip://x::{asked.url}/x.zip", "a/../../x", "file:///etc/passwd"):  # fmt: skip
        for files in (named, [named], {"train": named}, [{"split": "train", "path": ["own.jsonl", named]}]):
            for key in ("data_files", "data_dir"):
                body = json.dumps({"configs": [{"config_name": "default", key: files}]})
                for file, text in {"README.md": f"---\n{body}\n---\n", ".huggingface.yaml": body}.items():
                    (cards / file).write_text(text)
                    with pytest.raises(UserError, match="names files that are not its own") as caught:
                        next(load._hub_rows("owner/name", "train"))
                    attempt(named in str(caught.value), (file, key, files))
                    (cards / file).unlink()
    attempt(not asked.seen, "asked for an address")
    asked.server.shutdown()
