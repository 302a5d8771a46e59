"""An LLM judge on this machine: a real HTTP server that answers as a test wants."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qlora_gui.preferences.llm_judge import Judge
from qlora_gui.preferences.votes import Vote
from tests.factories import vote

Answering = Callable[[dict[str, Any]], tuple[int, str]]


class Endpoint:
    """A server that speaks as much of the protocol as a judge needs; keeps what it was asked."""

    def __init__(self, answering: Answering):
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body | {"path": self.path})
                outer.keys.append(self.headers.get("Authorization"))
                status, text = answering(body)
                with suppress(BrokenPipeError):  # who asked may have gone
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(text.encode())

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def judge(self) -> Judge:
        return Judge(f"http://127.0.0.1:{self.server.server_port}/v1", "big-judge", timeout=5)


def said(content: str | None) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def parts(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers as the judge was shown them."""
    text = body["messages"][-1]["content"]
    return text.split("<A>\n")[1].split("\n</A>")[0], text.split("<B>\n")[1].split("\n</B>")[0]


def prefers(word: str) -> Answering:
    """A judge that finds the answer with a word in it better, wherever it stands."""

    def answering(body: dict[str, Any]) -> tuple[int, str]:
        first, second = (word in part for part in parts(body))
        return said(json.dumps({"best": "tie" if first == second else "A" if first else "B"}))

    return answering


def human(number: int, choice: int | str = 1, **more: Any) -> Vote:
    return vote(number, choice, answers=("poor", "good"), base={"name": "demo", "fingerprint": "f"}, **more)
