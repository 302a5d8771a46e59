"""Who gets in: the token of a page without a login, and logins that an attacker's wrong passwords keep nobody out of."""

import contextlib
import random
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_gui.errors import UserError
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.ui import key, throttle
from tests.security.attacks import Attempts
from tests.served_page import PASSWORD, USER, Page, call, login, opened

STARTS = "/gradio_api/startup-events"
WITHOUT = "other users of the machine: every route of the page without its token"
LOCKED_OUT = "wrong passwords that keep the owner out"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("entry")) as found:
        yield found


def enter(page: Page, client: httpx.Client, address: str = "/") -> httpx.Response:
    """Visit the printed address."""
    return client.get(httpx.URL(address).copy_merge_params({"token": page.token}), follow_redirects=False)


def _routes(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, the parameters filled in."""
    for route in routes:
        if inner := getattr(getattr(route, "original_router", route), "routes", None):
            yield from _routes(inner)
        for method in getattr(route, "methods", None) or ("GET",):
            if path := re.sub(r"\{[^}]*\}", "x", getattr(route, "path", "")):
                yield method, path


def every_route(folder: Path) -> set[tuple[str, str]]:
    """The routes that Gradio makes for this page, and spellings of some that a proxy or a client may use."""
    import gradio.routes

    from qlora_gui.ui.app import build_app

    found = set(_routes(gradio.routes.App.create_app(build_app(RunStore(folder))).routes))
    for path in ("/", "/config", "/gradio_api/queue/join", "/gradio_api/file=/etc/hostname", "/gradio_api/upload"):
        found |= {("GET", path), ("POST", path), ("HEAD", path), ("PUT", path), ("OPTIONS", path)}
    for path in (
        "//config",
        "/./config",
        "/static/../config",
        "/assets/..%2fconfig",
        "/config/",
        "/Config",
        "/%63onfig",
    ):
        found.add(("GET", path))
    return found


@pytest.mark.attack(WITHOUT)
def test_nothing_is_served_without_the_token(page: Page, tmp_path: Path, attempt: Attempts) -> None:
    routes = every_route(tmp_path)
    assert {("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/heartbeat/x"), ("GET", "/config")} <= routes
    assert len(routes) > 60
    with httpx.Client(base_url=page.url, timeout=30) as client:
        for method, path in sorted(routes):
            if path == STARTS or path.startswith(("/static/x", "/assets/x", "/svelte/x")):
                continue  # Gradio's own scripts and styles, the same on every machine
            answer = client.request(method, path)
            attempt(answer.status_code in (401, 404) and "qlora" not in answer.text.lower()[200:], (method, path))
        told = client.get("/")
        assert told.status_code == 401 and "open the address printed in the terminal" in told.text
        assert told.headers["content-type"].startswith("text/html") and "viewport" in told.text
        assert client.get(STARTS).status_code == 200  # by which Gradio waits for its own server


@pytest.mark.attack("the token guessed, cut, or put where it does not belong")
def test_only_the_token_opens(page: Page, attempt: Attempts) -> None:
    token, name = page.token, f"qlora-page-{httpx.URL(page.url).port}"
    assert len(token) == 32
    wrong = ["", "x", token[:-1], token + "x", token.swapcase(), token[::-1], "\ud800", "é", token.encode().hex()]
    with httpx.Client(base_url=page.url, timeout=30) as client:
        for given in wrong:
            quoted = given.encode("utf-8", "surrogatepass")
            answer = client.get(f"/?token={''.join(f'%{byte:02x}' for byte in quoted)}")
            attempt(answer.status_code == 401 and "set-cookie" not in answer.headers, ("address", given))
            header = {b"Authorization": b"Bearer " + quoted if given else b"Bearer"}
            attempt(client.get("/config", headers=list(header.items())).status_code == 401, ("header", given))
        for value in (
            token,
            *wrong[:6],
            f'"{token}"',
            key.Key("x" * 32).mark("entered"),
            key.Key(token).mark("known to"),
        ):
            answer = client.get("/config", headers={"Cookie": f"{name}={value}"})
            attempt(answer.status_code == 401, ("cookie", value))
        right = key.Key(token).mark("entered")
        attempt(client.get("/config", headers={"Cookie": f"qlora-page-1={right}"}).status_code == 401, "other port")
        attempt(client.get("/config", params={"token": token}).status_code == 401, "on another path")
        attempt(client.post("/", params={"token": token}).status_code == 401, "posted")
        attempt(client.get("/config", headers={"Authorization": f"Basic {token}"}).status_code == 401, "basic")
        evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
        attempt(client.get("/", params={"token": token}, headers=evil).status_code == 403, "from another site")
        attempt(client.get("/", params={"token": token}, headers={"Host": "evil.example"}).status_code == 421, "name")


def test_the_printed_address_opens_the_page_and_its_token_goes_no_further(page: Page) -> None:
    with httpx.Client(base_url=page.url, timeout=60) as client:
        answer = enter(page, client, "/?tab=runs&run=a%26b")
        assert answer.status_code == 303 and answer.headers["location"] == "./?tab=runs&run=a%26b"
        cookie = answer.headers["set-cookie"]
        assert page.token not in cookie and all(word in cookie for word in ("HttpOnly", "SameSite=Lax", "Max-Age"))
        assert client.get("/").status_code == 200 and client.get("/?tab=train").status_code == 200  # further tabs
        assert page.token not in client.get("/config").text + client.get("/").text
        [listener] = [one for one in client.get("/config").json()["dependencies"] if [0, "x"] in one["targets"]] or [
            None
        ]
        assert listener is None
        files = {"files": ("rows.jsonl", b"{}\n")}
        assert client.post("/gradio_api/upload", files=files).status_code == 200
        loads = [one for one in client.get("/config").json()["dependencies"] if one["targets"][0][1] == "load"]
        assert "process_completed" in call(client, loads[-1]["id"], [])
    with httpx.Client(base_url=page.url) as program:
        assert program.get("/config", headers={"Authorization": f"Bearer {page.token}"}).status_code == 200


def test_gradios_client_needs_the_token_too(page: Page) -> None:
    client = pytest.importorskip("gradio_client")
    with pytest.raises(Exception, match="credentials were not provided"):
        client.Client(page.url, verbose=False)
    found = client.Client(page.url, headers={"Authorization": f"Bearer {page.token}"}, verbose=False)
    assert found.config["dependencies"]


@pytest.mark.slow
def test_a_reload_works_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as first, httpx.Client(base_url=first.url, timeout=60) as client:
        enter(first, client)
        port = str(httpx.URL(first.url).port)
        assert client.get("/config").status_code == 200
    with opened(tmp_path, "--port", port) as second, httpx.Client(base_url=second.url, timeout=60) as client_2:
        assert second.token == first.token
        client_2.cookies = client.cookies
        assert client_2.get("/config").status_code == 200


@pytest.mark.attack("the token read by others of the machine")
def test_the_token_is_for_its_owner_alone(page: Page, attempt: Attempts) -> None:
    file = page.folder / "cache" / "page-token" / "token"
    attempt(stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700, file)
    for part in ("cmdline", "environ"):
        attempt(page.token not in Path(f"/proc/{page.pid}/{part}").read_bytes().decode("latin-1"), part)
    for path in page.folder.rglob("*"):
        if path.is_file() and path != file:
            attempt(page.token.encode() not in path.read_bytes(), path)
    assert page.said.count(page.token) == 1


@pytest.mark.attack("a file planted for the token")
def test_a_planted_token_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Attempts) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    first = key.load_or_create()
    assert key.load_or_create() == first
    file, planted = tmp_path / "page-token" / "token", "p" * 32
    theirs = tmp_path / "theirs"
    theirs.write_text(planted)
    theirs.chmod(0o600)
    for plant in (
        lambda: (file.write_text(planted), file.chmod(0o644)),
        lambda: (file.unlink(), file.symlink_to(theirs)),
        lambda: (file.unlink(), file.write_text("short"), file.chmod(0o600)),
        lambda: (file.unlink(), file.write_bytes(b"\xff" * 40), file.chmod(0o600)),
    ):
        plant()
        found = key.load_or_create()
        attempt(
            found.token not in (planted, "short") and len(found.token) == 32 and key.load_or_create() == found, plant
        )
        assert theirs.read_text() == planted
    file.unlink()
    file.mkdir()  # it cannot be kept: one for this process
    assert len(key.load_or_create().token) == 32


def test_a_page_can_be_opened_to_all_knowingly(tmp_path: Path) -> None:
    with opened(tmp_path, "--no-token") as page, httpx.Client(base_url=page.url) as client:
        assert not page.token and client.get("/config").status_code == 200


def test_logins_keep_working_and_need_no_token(tmp_path: Path) -> None:
    """From a phone in the same network, say: a made password, which no wrong ones can hold up."""
    with opened(tmp_path, "--host", "0.0.0.0") as page:
        [password] = re.findall(r"Log in as qlora with the password (\S+)", page.said)
        assert "token" not in page.said
        phone = {"Host": f"192.168.1.7:{httpx.URL(page.url).port}"}
        with httpx.Client(base_url=page.url, headers=phone, timeout=30) as client:
            assert client.get("/config").status_code == 401
            for number in range(40):
                assert client.post("/login", data={"username": "qlora", "password": f"{number}"}).status_code == 400
            began = time.monotonic()
            assert client.post("/login", data={"username": "qlora", "password": password}).status_code == 200
            assert time.monotonic() - began < 3
            assert client.get("/config").status_code == 200


def test_the_token_is_no_way_around_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_gui.ui.app import launch_page

    with pytest.raises(UserError, match="--no-token is for a page without a login"):
        launch_page(RunStore("adapters"), Address("0.0.0.0", token=False))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("guarded"), "--auth", f"{USER}:{PASSWORD}") as page:
        yield page


class Flood:
    """Wrong passwords without end, from addresses that `forwarded` makes up, as they come through a tunnel."""

    def __init__(self, url: str, threads: int, forwarded: Any):
        self._over, self.answers = threading.Event(), []
        self._url, self._forwarded = url, forwarded
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._over.is_set():
                sent = {"X-Forwarded-For": self._forwarded()}
                with contextlib.suppress(httpx.TransportError):  # the page is closed before the last are answered
                    self.answers.append(login(client, f"wrong {random.random()}", **sent).status_code)

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 60
        while 429 not in self.answers and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 429 in self.answers, "the flood is not held up"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


def made_up() -> str:
    """A public address."""
    return f"81.{random.randrange(1, 250)}.{random.randrange(256)}.{random.randrange(1, 250)}"


@pytest.mark.attack(LOCKED_OUT)
def test_one_attacker_holds_nobody_else_up(guarded: Page, attempt: Attempts) -> None:
    """Everybody comes through one tunnel, which adds the address it saw behind what the client made up."""
    with Flood(guarded.url, 4, lambda: f"{made_up()}, 203.0.114.9"):
        for owner in ("81.2.3.4", "9.9.9.9, 82.2.3.4", "2a02:1::7", "81.2.3.5, 10.0.0.3"):
            with httpx.Client(base_url=guarded.url, timeout=60) as client:
                began = time.monotonic()
                held = login(client, PASSWORD, **{"X-Forwarded-For": owner}).status_code == 200
                attempt(held and time.monotonic() - began < throttle.LONGEST_PAUSE, owner)
        with httpx.Client(base_url=guarded.url, timeout=60) as client:  # the owner, on the machine itself
            attempt(login(client, PASSWORD).status_code == 200, "from this machine")


@pytest.mark.attack(LOCKED_OUT)
def test_whoever_was_in_before_gets_in_whatever_others_try(guarded: Page, attempt: Attempts) -> None:
    """The worst case: an attacker whose addresses are as many as he likes, and one with the owner's own."""
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        login(client, PASSWORD, **{"X-Forwarded-For": "81.2.3.44"})
        known = {name: value for name, value in client.cookies.items() if name.startswith("qlora-page-")}
    [printed] = re.findall(r"log in at http://\S+/\?token=(\S+)", guarded.said)
    for forwarded in (made_up, lambda: "81.2.3.4"):
        with Flood(guarded.url, 48, forwarded):
            for _ in range(3):
                with httpx.Client(base_url=guarded.url, timeout=60, cookies=known) as client:
                    began = time.monotonic()
                    held = login(client, PASSWORD, **{"X-Forwarded-For": "81.2.3.4"}).status_code == 200
                    attempt(held and time.monotonic() - began < 5, "known")
            with httpx.Client(base_url=guarded.url, timeout=60) as client:
                assert client.get("/", params={"token": printed}).status_code == 303
                attempt(client.get("/config").status_code == 401, "the token instead of the password")
                attempt(login(client, PASSWORD, **{"X-Forwarded-For": "81.2.3.4"}).status_code == 200, "printed")
            with httpx.Client(base_url=guarded.url, cookies=dict.fromkeys(known, "0" * 64)) as client:
                attempt(login(client, "wrong", **{"X-Forwarded-For": "81.2.3.4"}).status_code in (400, 429), "made up")


@pytest.mark.attack("passwords guessed by bursts, and from many addresses")
def test_guesses_are_slowed_down_whoever_makes_them(monkeypatch: pytest.MonkeyPatch, attempt: Attempts) -> None:
    now, day = [100.0], 24 * 3600
    monkeypatch.setattr(throttle.time, "monotonic", lambda: now[0])

    def tried(address: Any) -> int:
        """Tries in a day of one who asks every half second."""
        one, count, end = throttle.Throttle(), 0, now[0] + day
        while now[0] < end:
            count += one.ask(address()) is not None
            now[0] += 0.5
        assert len(one._lanes) <= throttle._MOST_LANES
        return count

    one = throttle.Throttle()
    waits = [one.ask("one") for _ in range(50)]
    assert waits[: throttle.FREE_TRIES] == [0] * throttle.FREE_TRIES
    attempt(waits.count(None) >= 40 and all(wait is None or wait <= throttle.LONGEST_PAUSE for wait in waits), "burst")
    attempt(tried(lambda: "one") <= day / throttle.LONGEST_PAUSE + 20, "one address")
    numbers = iter(range(10**9))
    attempt(tried(lambda: str(next(numbers))) <= day / throttle.ALL_PAUSE + 60, "an address a try")


def test_right_passwords_do_not_count() -> None:
    one = throttle.Throttle()
    for _ in range(200):
        assert one.ask("owner") == 0
        one.right("owner")


@pytest.mark.parametrize(
    ("client", "forwarded", "whom"),
    [
        ("81.2.3.4", [], "81.2.3.4"),
        ("81.2.3.4", ["9.9.9.9"], "81.2.3.4"),  # of a client that is no proxy of this machine
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["9.9.9.9, 81.2.3.4"], "81.2.3.4"),
        ("81.2.3.4", ["9.9.9.9, 81.2.3.4"], "81.2.3.4"),  # as the server rewrites what a proxy sent
        ("10.0.0.3", ["9.9.9.9", "81.2.3.4, 10.0.0.3"], "81.2.3.4"),
        ("127.0.0.1", ["nonsense, ::1, "], "127.0.0.1"),
        ("2a02:1:2:3:4:5:6:7", [], "2a02:1:2:3::/64"),
        ("::ffff:81.2.3.4", [], "81.2.3.4"),
        ("", [], "unknown"),
    ],
)
def test_whose_a_try_is(client: str, forwarded: list[str], whom: str) -> None:
    assert throttle.whose(client, forwarded) == whom
