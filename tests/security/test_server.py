"""Attacks on the page, made with plain requests against a real one: each must be refused, and what is right must work."""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_gui import config as configs
from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.system import processes
from qlora_gui.ui import guard
from qlora_gui.ui.train import form
from tests.conftest import train
from tests.served_page import PASSWORD, USER, call, login, opened

ROOT = Path(__file__).parents[2]
EVIL = {"Origin": "https://evil.example"}


@dataclass
class Served:
    """A page in a process of its own; `client` has no cookie, `owner` is logged in."""

    url: str
    pid: int
    folder: Path
    client: httpx.Client
    owner: httpx.Client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    words = ("--auth", f"{USER}:{PASSWORD}", "--allow-host", "lab.example")
    with (
        opened(folder, *words, QLORA_GUI_JUDGE_KEY="sk-judge-secret") as page,
        httpx.Client(base_url=page.url, timeout=30) as client,
        httpx.Client(base_url=page.url, timeout=30) as owner,
    ):
        assert login(owner, PASSWORD).status_code == 200
        yield Served(page.url, page.pid, folder, client, owner)


def listeners(owner: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = owner.get("/config").raise_for_status().json()["dependencies"]
    return found


@pytest.mark.attack("without the login: routes of the page and its API")
def test_without_the_login_nothing_but_the_login_is_served(served: Served) -> None:
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x", "/gradio_api/heartbeat/x"):
        assert served.client.get(path).status_code == 401, path
    for path in ("queue/join", "run/predict", "api/predict", "call/predict", "cancel", "reset", "component_server"):
        assert served.client.post(f"/gradio_api/{path}", json={"fn_index": 0, "data": []}).status_code == 401, path
    files = {"files": ("rows.jsonl", b"{}\n")}
    assert served.client.post("/gradio_api/upload", files=files).status_code == 401
    assert served.client.get(f"/gradio_api/file={served.folder}/adapters").status_code == 401
    assert served.owner.get("/config").status_code == 200


@pytest.mark.attack("DNS rebinding: the page asked for by a foreign name")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::1"])
def test_a_name_that_is_not_ours_is_refused(served: Served, host: str) -> None:
    """DNS rebinding: the attacker's name leads to this machine, and the browser sends it along."""
    assert served.owner.get("/config", headers={"Host": host}).status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "192.168.1.7:7860", "[::1]:7860", "lab.example"])
def test_our_names_are_served(served: Served, host: str) -> None:
    assert served.owner.get("/config", headers={"Host": host}).status_code == 200


@pytest.mark.attack("other websites act for who is logged in")
@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "http://127.0.0.1:1"},  # cookies know no ports: another program of this machine would have them
        {"Origin": "http://["},
        {"Origin": "file://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
)
def test_other_sites_cannot_act_for_who_is_logged_in(served: Served, headers: dict[str, str]) -> None:
    files = {"files": ("rows.jsonl", b"{}\n")}
    assert served.owner.post("/gradio_api/upload", files=files, headers=headers).status_code == 403
    asked = {"fn_index": 0, "data": [], "session_hash": "x"}
    assert served.owner.post("/gradio_api/queue/join", json=asked, headers=headers).status_code == 403
    assert login(served.client, PASSWORD, **headers).status_code == 403
    assert served.owner.get("/logout", headers=headers).status_code == 403


@pytest.mark.parametrize("other", ['prefs={"a":1}', "a[b]=1", "odd", "path=/x", "n=\xe9"])
def test_cookies_of_other_programs_lock_nobody_out(served: Served, other: str) -> None:
    mine = "; ".join(f"{name}={value}" for name, value in served.owner.cookies.items())
    for line in (f"{other}; {mine}", f"{mine}; {other}"):
        with httpx.Client(base_url=served.url) as client:
            answer = client.get("/config", headers=[(b"Cookie", line.encode("latin-1"))])
        assert answer.status_code == 200, line


def test_a_link_to_the_page_may_be_followed(served: Served) -> None:
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = served.owner.get("/", headers=visit)
    assert answer.status_code == 200 and answer.headers["x-frame-options"] == "DENY"
    assert served.owner.get("/", headers=visit | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def announced(served: Served, path: str, length: int) -> int:
    """The answer to a request that only says how long it will be."""
    place = httpx.URL(served.url)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=30)
    connection.putrequest("POST", path)
    cookie = "; ".join(f"{name}={value}" for name, value in served.owner.cookies.items())
    for name, value in {"Cookie": cookie, "Content-Length": str(length), "Content-Type": "application/json"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse().status


@pytest.mark.attack("requests of any size, also before the login")
def test_bodies_are_bounded_also_before_the_login(served: Served) -> None:
    big = b"x" * (guard.MOST_LOGIN + 1)
    form_type = {"Content-Type": "application/x-www-form-urlencoded"}
    assert served.client.post("/login", content=big, headers=form_type).status_code == 413
    assert announced(served, "/gradio_api/queue/join", guard.MOST_BODY + 1) == 413
    assert announced(served, "/gradio_api/upload", guard.MOST_UPLOAD + 1) == 413

    def drops() -> Iterator[bytes]:  # no length is announced
        for _ in range(guard.MOST_BODY // 65536 + 8):
            yield b" " * 65536

    assert served.owner.post("/gradio_api/upload", content=drops()).status_code == 411
    try:
        status = served.owner.post("/gradio_api/queue/join", content=drops()).status_code
    except httpx.TransportError:  # hung up on
        status = 400
    assert status >= 400
    assert served.owner.get("/config").status_code == 200


@pytest.mark.attack("other websites act for who is logged in")
def test_the_cookie_is_not_for_other_sites(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        cookies = login(client, PASSWORD).headers.get_list("set-cookie")
    assert len(cookies) == 3  # two of Gradio's, and that by which a browser is known
    for cookie in cookies:
        assert "httponly" in cookie.lower() and "samesite=lax" in cookie.lower() and "none" not in cookie.lower()


@pytest.mark.attack("files of the machine through routes of the page")
def test_no_file_of_the_machine_is_handed_out(served: Served) -> None:
    own = served.folder / "secret.json"
    own.write_text("{}")
    upload = served.owner.post("/gradio_api/upload", files={"files": ("rows.jsonl", b"{}\n")}).raise_for_status().json()
    assert served.owner.get(f"/gradio_api/file={upload[0]}").status_code == 200
    for path in ("/etc/passwd", str(own), "app.py", f"{upload[0]}/../../../../../../etc/passwd", str(ROOT / "app.py")):
        answer = served.owner.get(f"/gradio_api/file={path}")
        assert answer.status_code in (403, 404) and "root:" not in answer.text, path
    for path in ("/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/proxy=http://x/", "/gradio_api/token"):
        assert served.owner.get(path).status_code == 404, path
    mode = (served.folder / "cache" / "page").stat().st_mode & 0o777
    assert mode == 0o700


@pytest.mark.attack("files of the machine through routes of the page")
def test_listeners_keep_their_queue_and_take_no_path_of_the_server_for_an_upload(served: Served) -> None:
    found = listeners(served.owner)
    components = {one["id"]: one for one in served.owner.get("/config").json()["components"]}
    [upload] = [one for one in found if [components[i]["type"] for i in one["inputs"]] == ["uploadbutton"]]
    answer = served.owner.post("/gradio_api/run/predict", json={"fn_index": upload["id"], "data": ["x"]})
    assert answer.status_code in (401, 403, 404, 422)
    stolen = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    assert '"success":false' in call(served.owner, upload["id"], [stolen]).replace(" ", "")
    kept = served.folder / "cache" / "uploads"
    assert not kept.exists() or not list(kept.iterdir())


@pytest.mark.attack("names of runs that lead out of the adapters folder")
def test_run_names_do_not_lead_out_of_the_folder(store: RunStore, tmp_path: Path) -> None:
    outside = tmp_path / "run.json"
    outside.write_text(json.dumps({"schema": 1, "config": {}}))
    store.root.mkdir()
    for name in ("..", ".", "", "../adapters", "a/../..", str(tmp_path), "..\\..", "a\0b", "run.json/.."):
        with pytest.raises((UserError, ValueError)):
            store.get(name)
    assert outside.exists()
    for name in ("../x", "a/b", ".hidden", "-rf", "a b", "votes.jsonl", "é", "x" * 65):
        with pytest.raises(UserError):
            configs.make({"name": name})
    for revision in ("../../x", "/etc", "a..b", "-x"):
        with pytest.raises(UserError):
            configs.make({"base_model": "org/name", "revision": revision})


@pytest.mark.attack("data, bases and configs outside of the folders allowed")
def test_a_page_that_others_reach_names_no_folder_that_was_not_allowed(tmp_path: Path, llama: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed, other):
        folder.mkdir()
        (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    (allowed / "link.jsonl").symlink_to(other / "rows.jsonl")
    store = RunStore(tmp_path / "adapters", [tmp_path / "adapters", allowed])
    refused = [
        other / "rows.jsonl",
        other / "no.jsonl",
        allowed / "link.jsonl",
        allowed / ".." / "other" / "rows.jsonl",
    ]
    told = set()
    for path in refused:
        _, found = form.judge({"base_model": "demo", "dataset": str(path)}, store)
        told.add(found["dataset"].replace(str(path), "*"))
        with pytest.raises(UserError, match="--allow-dir"):
            store.create(configs.make({"dataset": str(path)}))
    assert len(told) == 1  # whether a file exists is not to be found out
    with pytest.raises(UserError, match="--allow-dir"):
        store.create(configs.make({"base_model": str(llama), "dataset": str(allowed / "rows.jsonl")}))
    assert store.create(configs.make({"dataset": str(allowed / "rows.jsonl"), "name": "fine"})).id == "fine"
    assert not form.judge({"base_model": "org/name", "dataset": "demo"}, store)[1].get("base_model")
    (other / "config.json").write_text("{}")
    for knobs in (
        {"base_model": str(other), "revision": "main"},
        {"base_model": str(other / "no"), "revision": "main"},
        {"accelerate_config": str(other / "rows.jsonl")},
        {"dataset": "~nobody-at-all/rows.jsonl"},
    ):
        config, found = form.judge(knobs, store)
        assert config is None and all("--allow-dir" in fault for fault in found.values()), found
    with pytest.raises(UserError, match="--allow-dir"):
        store.create(configs.make({"accelerate_config": str(other / "rows.jsonl")}))


@pytest.mark.attack("a hub data set whose card names files of this machine")
@pytest.mark.slow
def test_a_hub_data_set_reaches_no_file_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its card may name files by any pattern, and the library would read them."""
    from qlora_gui import hub
    from qlora_gui.data import load

    (tmp_path / "secret.jsonl").write_text('{"prompt": "a", "completion": "secret"}\n')
    card = tmp_path / "owner" / "name"
    card.mkdir(parents=True)
    card.joinpath("README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path}/*.jsonl\n---\n"
    )
    monkeypatch.setattr(hub, "require", lambda *what: None)
    monkeypatch.setattr(hub, "go_offline_if_unreachable", lambda: None)
    monkeypatch.chdir(tmp_path)  # the library takes a folder of that name for the hub's
    with pytest.raises(UserError, match="names files that are not its own"):
        next(load._hub_rows("owner/name", "train"))


@pytest.mark.attack("passwords guessed by time")
def test_passwords_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    compare = guard.hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(guard.hmac, "compare_digest", watched)
    right = guard.Login("me", "se:cret")
    assert right("me", "se:cret")
    for user, password in (("me", "se:cre"), ("me:se", "cret"), ("", ""), ("me", "\ud800"), ("you", "se:cret")):
        assert not right(user, password)
    assert set(seen) == {(32, 32)} and len(seen) == 6  # digests of one length, whatever was tried


@pytest.mark.attack("secrets in process lists, children, runs and reports")
def test_the_password_is_in_no_process_list_and_no_child_has_secrets(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Path(f"/proc/{served.pid}/cmdline").read_bytes().decode()
    assert PASSWORD not in words and "app.py" in words and "lab.example" in words
    for name in processes.SECRETS:
        monkeypatch.setenv(name, "hidden-1234")
    assert "hidden-1234" not in json.dumps(launch.child_environment())


@pytest.mark.slow
@pytest.mark.attack("secrets in process lists, children, runs and reports")
def test_a_run_and_its_report_hold_no_secret(store: RunStore, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_gui import report

    secrets = {name: f"hidden-{name}" for name in (*processes.SECRETS, "HF_TOKEN", "WANDB_API_KEY")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    run = train(store, base_model=str(llama), name="quiet")
    texts = [path.read_bytes().decode("utf-8", "replace") for path in run.path.rglob("*") if path.is_file()]
    texts += [render(report.written(store)) for render in report.RENDERERS.values()]
    for text in texts:
        assert not any(value in text for value in secrets.values())


def test_a_short_password_is_refused_where_others_can_reach_the_page() -> None:
    with pytest.raises(UserError, match="too short"):
        Address("0.0.0.0", auth="me:short").login()
    assert Address(auth="me:short").login() == ("me", "short")
    assert Address("0.0.0.0").login() and Address(share=True).login() and Address().login() is None


@pytest.mark.attack("chat templates that reach Python")
def test_a_chat_template_reaches_nothing_of_python(llama: Path) -> None:
    from qlora_gui.data.chat import Chat
    from qlora_gui.models.base import load_tokenizer

    tokenizer = load_tokenizer(llama)
    for template in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__.__base__ }}"):
        with pytest.raises(Exception, match="unsafe"):
            Chat(tokenizer, template).prompt([{"role": "user", "content": "x"}])


@pytest.mark.slow
@pytest.mark.attack("bases that bring code or pickles")
def test_a_base_that_brings_code_or_pickles_runs_none(llama: Path, tmp_path: Path) -> None:
    import pickle
    import shutil

    from qlora_gui.models import base as bases

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "exploded").touch, ())

    brings_code = tmp_path / "brings-code"
    shutil.copytree(llama, brings_code)
    settings = json.loads((brings_code / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (brings_code / "config.json").write_text(json.dumps(settings))
    (brings_code / "own.py").write_text(
        f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Own: pass\nclass Model: pass\n"
    )
    pickled = tmp_path / "pickled"
    shutil.copytree(llama, pickled)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    store = RunStore(tmp_path / "adapters")
    for folder, told in ((brings_code, ""), (pickled, "pytorch_model.bin, which can run code")):
        run = store.create(configs.make({"base_model": str(folder), "max_steps": 1}))
        launch.start(run, store)
        while run.is_live():
            time.sleep(0.2)
        assert run.state() == "failed" and told in run.events()[0][-1]["message"], run.log_tail()
        with pytest.raises(UserError, match=told or "."):
            base = bases.locate(str(folder), "", print)
            bases.load_model(base.path, "nf4", True, bases_device(), None, print)
    assert not (tmp_path / "exploded").exists()


def bases_device() -> Any:
    import torch

    return torch.device("cpu")
