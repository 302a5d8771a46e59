"""A hub on this machine that takes pushes: it answers as the hub does what `huggingface_hub` asks then."""

import base64
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

WRITE, READ = "hf_" + "W" * 30, "hf_" + "R" * 30
ME = "me"
CUT, LOST, PAGE = 0, -1, -2
_LFS = (".safetensors", ".gguf", "tokenizer.json")  # what the hub keeps apart from git, whatever its size


@dataclass
class Repo:
    """A model on the hub: its files by name, and how many commits it has."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    def save(self, folder: Path) -> Path:
        """Write the files down, as whoever downloads the model has them."""
        for name, body in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body)
        return folder


@dataclass
class Fault:
    """What goes wrong at the next `times` requests that match: a status, a connection cut within the request (CUT) or before
    the answer to what was done (LOST), or the login page of a network (PAGE).
    """

    where: re.Pattern[str]
    status: int
    times: int
    says: str = ""


class HubServer:
    """The hub: repositories by name, what was asked, and what is to go wrong. `multipart`: bytes of a part of large files."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Authorization
        self.faults: list[Fault] = []
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.multipart: int | None = None
        self.seconds = 0.0  # that storing a large file takes
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fail(self, where: str, status: int = CUT, times: int = 1, says: str = "") -> None:
        """Let requests fail whose method and path match, as "PUT /lfs/"."""
        self.faults.append(Fault(re.compile(where), status, times, says))

    def count(self, where: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(where, f"{method} {path}")) for method, path, _ in self.asked)


@contextmanager
def serving() -> Iterator[HubServer]:
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement of its headers
    hub: HubServer

    def log_message(self, *args: object) -> None: ...

    def _any(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        fault = next((one for one in hub.faults if one.times and one.where.search(f"{self.command} {path}")), None)
        if fault:
            fault.times -= 1
            if fault.status == CUT:
                self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                self.close_connection = True
                self.connection.close()
                return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and fault.status == LOST:
            self.wfile, self.close_connection = io.BytesIO(), True
        elif fault and fault.status == PAGE:
            return self._say(200, "<html>Welcome to the hotel</html>")
        elif fault:
            return self._say(fault.status, {"error": fault.says}, {"X-Error-Message": fault.says} if fault.says else {})
        for method, pattern, answer in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return answer(self, body, *found.groups())
        return self._say(404, {"error": f"no such place: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _any

    def _say(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value or {}).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _may_write(self, repo: str) -> bool:
        """Whether the token may write there; if not it is told so."""
        if self.token not in (WRITE, READ):
            self._say(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        elif self.token == READ or not repo.startswith(f"{ME}/"):
            self._say(403, {"error": f"You don't have the rights to write to {repo}"})
        else:
            return True
        return False

    def front(self, body: bytes) -> None:
        self._say(200)

    def whoami(self, body: bytes) -> None:
        known = self.token in (WRITE, READ)
        auth = {"type": "access_token", "accessToken": {"role": "write" if self.token == WRITE else "read"}}
        about = {"name": ME, "type": "user", "orgs": [], "auth": auth} if known else {"error": "Invalid"}
        self._say(200 if known else 401, about)

    def model(self, body: bytes, repo: str, revision: str | None) -> None:
        found = self.hub.repos.get(repo)
        if found is None or (found.private and self.token not in (WRITE, READ)):
            known = self.token in (WRITE, READ)
            return self._say(404 if known else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": name} for name in (".gitattributes", *found.files)]
        value = {"id": repo, "modelId": repo, "private": found.private, "siblings": files, "tags": [], "downloads": 0}
        return self._say(200, value | {"sha": f"{found.commits:040x}"})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or ME}/{asked['name']}"
        if not self._may_write(repo):
            return
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repos:
            return self._say(409, {"error": "You already created this model repo"} | url)
        self.hub.repos[repo] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._say(200, url)

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        header = re.match(r"---\n(.*?)\n---", text, re.S)
        value = yaml.safe_load(header[1]) if header else {}
        bad = [
            name
            for name in ([value["base_model"]] if "base_model" in value else [])
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", name)
        ]
        errors = [{"message": f'"base_model" with value "{name}" is not valid'} for name in bad]
        self._say(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repo: str) -> None:
        if not self._may_write(repo):
            return
        files = []
        for file in json.loads(body)["files"]:
            name, there = file["path"], self.hub.repos[repo].files.get(file["path"])
            lfs = name.endswith(_LFS)
            about = {"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if there is not None:
                git = hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
                about["oid"] = hashlib.sha256(there).hexdigest() if lfs else git
            files.append(about)
        self._say(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        if self._may_write(repo):
            asked = json.loads(body)
            assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
            self._say(200, {"transfer": "basic", "objects": [self._actions(one) for one in asked["objects"]]})

    def _actions(self, one: dict[str, Any]) -> dict[str, Any]:
        oid, size, url = one["oid"], one["size"], self.hub.url
        if oid in self.hub.blobs:
            return {"oid": oid, "size": size}
        upload: dict[str, Any] = {"href": f"{url}/lfs/{oid}?signed=secret"}
        if (chunk := self.hub.multipart) and size > chunk:
            parts = {str(n + 1): f"{url}/lfs/{oid}/{n + 1}?signed=secret" for n in range(-(-size // chunk))}
            upload = {"href": f"{url}/lfs/{oid}/complete", "header": {"chunk_size": str(chunk), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{url}/lfs/{oid}/verify"}}}

    def put(self, body: bytes, oid: str) -> None:
        time.sleep(self.hub.seconds)
        if hashlib.sha256(body).hexdigest() != oid:
            return self._say(400, {"error": "The body is another one"})
        self.hub.blobs[oid] = body
        self._say(200)

    def part(self, body: bytes, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        self._say(200, headers={"ETag": f'"{number}"'})

    def complete(self, body: bytes, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        self.put(b"".join(self.hub.parts[oid][number] for number in numbers), oid)

    def verify(self, body: bytes, oid: str) -> None:
        self._say(200 if oid in self.hub.blobs else 404)

    def commit(self, body: bytes, repo: str) -> None:
        if not self._may_write(repo):
            return
        there = self.hub.repos[repo]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                there.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                there.files[value["path"]] = self.hub.blobs[value["oid"]]
        there.commits += 1
        oid = f"{there.commits:040x}"
        self._say(200, {"success": True, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("HEAD", "/", _Handler.front),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("GET", rf"/api/models/{_REPO}(/revision/main)?", _Handler.model),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/preupload/main", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.put),
    ("PUT", r"/lfs/(\w+)/(\d+)", _Handler.part),
    ("POST", r"/lfs/(\w+)/complete", _Handler.complete),
    ("POST", r"/lfs/(\w+)/verify", _Handler.verify),
    ("POST", rf"/api/models/{_REPO}/commit/main", _Handler.commit),
]
