"""What the hub says, asked of a small HTTP server on this machine that answers as the hub does."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qlora_gui import hub
from qlora_gui.errors import UserError


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        if "slow" in self.path:
            time.sleep(20)
        known = self.path in ("/", "/api/models/owner/there", "/api/models/owner/there/revision/v1")
        self.send_response(200 if known else 401)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub.answers.cache_clear()
    yield server.server_address[0]
    server.shutdown()
    hub.answers.cache_clear()


def test_known_names_pass_and_unknown_ones_are_a_sentence(endpoint: str) -> None:
    hub.require("models", "owner/there")
    hub.require("models", "owner/there", "v1")
    with pytest.raises(UserError, match="knows no base model 'owner/typo' that you may read"):
        hub.require("models", "owner/typo")
    with pytest.raises(UserError, match="at revision 'v2'"):
        hub.require("models", "owner/there", "v2")


@pytest.mark.parametrize("name", ["a/b/c", "../etc", "has space", "/abs", "a/..", ""])
def test_what_is_no_id_is_said_at_once(name: str) -> None:
    with pytest.raises(UserError, match="neither an existing file or folder nor a hub id"):
        hub.require("models", name)


def test_a_hub_that_hangs_costs_little(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint()}/slow")
    began = time.monotonic()
    assert not hub.answers()
    with pytest.raises(UserError, match="the hub does not answer"):
        hub.require("datasets", "owner/there")
    assert time.monotonic() - began < 5


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "elsewhere"))
    assert hub.cache_dir() == tmp_path / "elsewhere"
