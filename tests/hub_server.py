"""A hub of repositories on this machine: answers what huggingface_hub asks for models, and keeps what was asked."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@dataclass
class HubServer:
    """`repositories` by owner/name, each a folder; those in `gated` refuse their files. `asked` has every path."""

    repositories: Mapping[str, Path]
    gated: frozenset[str] = frozenset()
    commits: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, name: str) -> str:
        return self.commits.get(name, COMMIT)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        self.asked.append(path)
        words = unquote(path.partition("?")[0]).strip("/").split("/")
        if words == [""]:
            return 200, {}, b""
        api = words[:2] == ["api", "models"]
        name, rest = "/".join(words[2:4] if api else words[:2]), words[4:] if api else words[2:]
        folder = self.repositories.get(name)
        if folder is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", self.commit(name)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if api:
            siblings = [
                {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size} for file in files
            ]
            about = {"id": name, "sha": self.commit(name), "siblings": siblings, "private": False, "tags": []}
            entries = [{"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "0"} for one in siblings]
            body = json.dumps(entries if rest[:1] == ["tree"] else about).encode()
            return 200, {"Content-Type": "application/json"}, body
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        body = file.read_bytes()
        return 200, {"ETag": f'"{abs(hash((name, *rest[2:], body))):x}"', "X-Repo-Commit": self.commit(name)}, body


@contextmanager
def serving(
    repositories: Mapping[str, Path], gated: frozenset[str] = frozenset(), commits: dict[str, str] | None = None
) -> Iterator[HubServer]:
    """Serve these repositories within the context."""
    hub = HubServer(repositories, gated, commits or {})

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for header, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = _any

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
