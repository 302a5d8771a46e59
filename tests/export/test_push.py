"""Pushes to a server that answers as the hub does, by the real client: what arrives, what stays here, and what is told."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_gui import hub, locks
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.export import hub_target, job, publish, push_job
from qlora_gui.export.push import push
from qlora_gui.export.push_job import Push
from qlora_gui.models import demo
from qlora_gui.models.base import Base
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training.save import model_card
from qlora_gui.ui.runs.hub_panel import HubPanel, status
from tests.adapters import finished_run, made_to_push
from tests.commands import ROOT
from tests.conftest import TINY
from tests.push_server import CUT, LOST, PAGE, READ, WRITE, HubServer, Repo, serving
from tests.security.attacks import Attempts

APP = [sys.executable, str(ROOT / "app.py")]
OURS = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", WRITE)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        hub.answers.cache_clear()
        yield server
        hub.answers.cache_clear()


@pytest.fixture(scope="session")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_to_push(llama, tmp_path_factory.mktemp("push") / "small")


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries take no time."""
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))


def pushed(adapter: Path, asked: Push, token: str = WRITE) -> list[str]:
    """Push in this process; what was said."""
    said: list[str] = []
    push(adapter, asked, token, said.append, lambda done, of: None)
    return said


def command(adapter: Path, *words: str, expect: int = 0, told: str | None = None) -> subprocess.CompletedProcess[str]:
    line = [*APP, "export", "--adapters", str(adapter), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, input=told)
    assert done.returncode == expect and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert WRITE not in done.stdout + done.stderr
    return done


def test_an_adapter_arrives_whole_and_alone(server: HubServer, adapter: Path, llama: Path, tmp_path: Path) -> None:
    """From the command line: private, its own files and no others, without a path of this machine, and PEFT loads it."""
    done = command(adapter, "--to", "adapter", "--push", "me/small")
    assert done.stdout.strip() == f"{server.url}/me/small" and "(private)" in done.stderr
    repo = server.repos["me/small"]
    assert repo.private and repo.commits == 1 and repo.files.keys() == OURS | {"tokenizer_config.json"}
    for name in repo.files.keys() - {"README.md", "adapter_config.json"}:
        assert repo.files[name] == (adapter / name).read_bytes(), name
    everything = b"".join(repo.files.values())
    assert str(llama).encode() not in everything and str(adapter.parent).encode() not in everything
    assert b"secret row" not in everything and "the base" in done.stderr.lower()
    header = yaml.safe_load(repo.files["README.md"].decode().split("---")[1])
    assert header["library_name"] == "peft" and "lora" in header["tags"] and "base_model" not in header
    assert not any("base_model:" in tag for tag in header["tags"])
    got = repo.save(tmp_path / "got")
    ours, theirs = (PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), at) for at in (adapter, got))
    ids = torch.arange(1, 9)[None]
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert not (adapter / push_job.RECORD).exists()  # it is no run's folder
    for method, path, key in server.asked:
        if path == "/api/agent-harnesses":  # the library's own question
            continue
        assert (key is None) == (method == "PUT" or path.endswith("/complete")), (method, path)  # signed addresses


def test_a_run_of_a_base_on_the_hub_names_it(server: HubServer, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "run"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "owner/base"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nBy me.\n")
    pushed(folder, Push("me/run", public=True))
    repo = server.repos["me/run"]
    assert not repo.private and repo.files["adapter_config.json"] == (folder / "adapter_config.json").read_bytes()
    text = repo.files["README.md"].decode()
    assert text.endswith("---\n# Mine\n\nBy me.\n")
    assert yaml.safe_load(text.split("---")[1]) == {
        "base_model": "owner/base",
        "license": "mit",
        "tags": ["mine", "lora"],
        "library_name": "peft",
        "base_model_relation": "adapter",
    }


def test_the_second_push_sends_nothing_twice(server: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(adapter, Push("me/small"))
    before = server.count("^PUT")
    pushed(adapter, Push("me/small", seen="private"))
    assert server.count("^PUT") == before and server.repos["me/small"].commits == 1


def test_large_files_go_in_parts(server: HubServer, adapter: Path) -> None:
    server.multipart = 3000
    counts: list[tuple[int, int]] = []
    push(adapter, Push("me/small"), WRITE, lambda text: None, lambda *count: counts.append(count))
    file = (adapter / "adapter_model.safetensors").read_bytes()
    assert server.repos["me/small"].files["adapter_model.safetensors"] == file
    assert server.count(r"^PUT /lfs/\w+/\d") >= -(-len(file) // 3000) > 1
    assert counts[-1][0] == counts[-1][1] and all(0 <= done <= of for done, of in counts) and len(set(counts)) > 2


@pytest.mark.parametrize(
    "where", ["PUT /lfs/", "POST .*/commit/", "POST /api/repos/create", "POST .*/preupload/", "POST .*batch"]
)
@pytest.mark.parametrize("status", [CUT, LOST, 503])
def test_what_breaks_once_is_tried_again(
    where: str, status: int, server: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    server.fail(where, status)
    said = pushed(adapter, Push("me/small"))
    weights = "adapter_model.safetensors"
    assert server.repos["me/small"].commits == 1
    assert server.repos["me/small"].files[weights] == (adapter / weights).read_bytes()
    if "commit" in where or "create" in where:
        assert any("trying again in 2 s" in text for text in said)


def test_a_connection_that_stays_broken_is_told_and_can_go_on(
    server: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    server.fail("/commit/", times=99)
    with pytest.raises(UserError, match="broke several times: push again, and what is there already is not sent again"):
        pushed(adapter, Push("me/small"))
    assert not server.repos["me/small"].files
    puts = server.count("^PUT")
    server.faults.clear()
    assert hub_target.look("me/small", WRITE).seen == "new"  # it holds nothing, so nobody has to be asked
    pushed(adapter, Push("me/small"))
    assert server.count("^PUT") == puts and server.repos["me/small"].commits == 1


@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("/commit/", 401, "does not take this token for 'me/small': log in with `hf auth login`, or set HF_TOKEN"),
        ("/commit/", 403, "may not write to 'me/small'"),
        ("/repos/create", 403, "may not write to 'me/small'"),
        ("/commit/", 409, "was changed by somebody else at the same time"),
        ("/commit/", 412, "was changed by somebody else at the same time"),
        ("/commit/", 413, r"takes no files as large as these.*\(The hub: too much, \*\*\*\)"),
        ("PUT /lfs", 413, "takes no files as large as these"),
        ("/commit/", 429, "asked too often"),
        ("/preupload/", 500, "refused the push to 'me/small' (status 500)".replace("(", r"\(").replace(")", r"\)")),
        ("/validate-yaml", 400, r"did not take the push: Invalid metadata in README\.md"),
        ("/commit/", 418, "status 418"),
        ("/commit/", 503, "too busy .status 503.: wait some minutes"),
        ("/commit/", PAGE, "no answer of the hub: check the network"),
        ("/repos/create", PAGE, "no answer of the hub: check the network"),
        ("GET /api/models", PAGE, "is not the hub: check the network"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    where: str, status: int, told: str, server: HubServer, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    server.fail(where, status, 99, f"too much, {WRITE}")
    with pytest.raises(UserError, match=told) as caught:
        pushed(adapter, Push("me/small"))
    assert WRITE not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "repo", "told"),
    [
        (READ, "me/small", "may not write to 'me/small'"),
        (WRITE, "other/small", "may not write to 'other/small'"),
    ],
)
def test_without_the_right_nothing_is_made(token: str, repo: str, told: str, server: HubServer, adapter: Path) -> None:
    with pytest.raises(UserError, match=told):
        pushed(adapter, Push(repo), token)
    assert not server.repos and not server.count("^PUT")


@pytest.mark.parametrize(
    "name", ["small", "a/b/c", "", "/", "me/", "me/..", "me/a--b", "me/x.git", "ü/x", "me/x y", "-/x", "me/" + "x" * 97]
)
def test_a_name_that_the_hub_does_not_take(name: str, server: HubServer) -> None:
    with pytest.raises(UserError, match="owner/name"):
        hub_target.look(name, WRITE)
    assert not server.asked


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (READ, "The token of 'me' may only read"),
        ("", "Nobody is logged in"),
        ("hf_old", "does not know this token"),
        ("a\nb", "no token of the hub"),
    ],
)
def test_who_is_not_logged_in_is_told_how(token: str, told: str, server: HubServer) -> None:
    with pytest.raises(UserError, match=told):
        hub_target.look("me/small", token)


def test_offline_is_a_sentence(adapter: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub.WENT_OFFLINE, raising=False)  # as a test before may have left it
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"The hub \(http://127.0.0.1:9\) does not answer: check the network"):
        hub_target.look("me/small", WRITE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so nothing can be pushed"):
        hub_target.look("me/small", WRITE)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv(hub.WENT_OFFLINE, "1")  # set by this program, when the hub did not answer once
    assert hub_target.look("me/small", WRITE).seen == "new"
    hub.try_again()
    assert "HF_HUB_OFFLINE" not in os.environ


def test_what_exists_is_agreed_to(server: HubServer, adapter: Path) -> None:
    """Asked without a terminal: refused, with the flags that would agree; a public one has to be named as that."""
    server.repos["me/there"] = Repo(True, {"x": b""})
    server.repos["me/open"] = Repo(False, {"x": b""})
    to = ("--to", "adapter", "--push")
    done = command(adapter, *to, "me/there", expect=2)
    assert "exists and is private" in done.stderr and "give --push-existing if that is meant" in done.stderr
    for words in ((), ("--push-existing",)):
        done = command(adapter, *to, "me/open", *words, expect=2)
        assert "is PUBLIC, and stays so" in done.stderr and "give --public and --push-existing" in done.stderr
    assert not server.count("^(PUT|POST)")
    command(adapter, *to, "me/there", "--push-existing", "--public")
    assert server.repos["me/there"].private and "adapter_config.json" in server.repos["me/there"].files


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_on_a_terminal_it_asks(answer: str, code: int, server: HubServer, adapter: Path) -> None:
    server.repos["me/open"] = Repo(False, {"x": b""})
    ours, theirs = pty.openpty()
    line = [*APP, "export", "--adapters", str(adapter), "--to", "adapter", "--push", "me/open"]
    child = subprocess.Popen(line, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(ours, answer.encode())
    _, told = child.communicate(timeout=120)
    os.close(ours), os.close(theirs)
    assert child.returncode == code and "Push to the public repository 'me/open'? [y/N]" in told, told
    assert ("adapter_config.json" in server.repos["me/open"].files) == (code == 0)


def test_a_run_that_goes_on_is_not_pushed(server: HubServer, adapter: Path, tmp_path: Path) -> None:
    run = finished_run(adapter, tmp_path / "run")
    with run.lock(), pytest.raises(UserError, match="push it when it has finished"):
        pushed(run.path, Push("me/small"))
    assert not server.asked


def test_what_changed_since_it_was_agreed_to_is_not_pushed_to(server: HubServer, adapter: Path) -> None:
    for private, seen, now in ((False, "new", "public"), (False, "private", "public"), (True, "new", "private")):
        server.repos["me/there"] = Repo(private, {"x": b""})
        with pytest.raises(UserError, match=f"is {now} now, and was {seen}"):
            pushed(adapter, Push("me/there", seen=seen))  # type: ignore[arg-type]
    assert not server.count("^(PUT|POST)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "adapter"], "There is nothing to make: the adapter lies in"),
        (["--to", "adapter", "--push", "me/x", "--out", "x"], "leave out --out"),
        (["--to", "merged", "--push", "me/x"], "needs --out"),
        (["--to", "merged", "--out", "x", "--public"], "--public says how it is pushed"),
        (["--to", "merged", "--out", "x", "--push-existing"], "--push-existing says how it is pushed"),
        (["--push", "me/x"], "needs --to"),
        (["--to", "adapter", "--push", "x"], "give owner/name"),
    ],
)
def test_flags_that_do_not_fit(words: list[str], told: str, server: HubServer, adapter: Path) -> None:
    assert told in command(adapter, *words, expect=2).stderr
    assert not server.count("^(PUT|POST)")


def test_a_folder_of_a_stranger_publishes_no_other_file(server: HubServer, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("private")
    for name in ("README.md", "tokenizer.json", "chat_template.jinja"):
        folder = Path(shutil.copytree(adapter, tmp_path / name.replace(".", "-")))
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "private.txt")
        with pytest.raises(UserError, match="symbolic link that leads out"):
            pushed(folder, Push("me/small"))
    (tmp_path / "README-md" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no adapter to push: it has no adapter_model\.safetensors"):
        pushed(tmp_path / "README-md", Push("me/small"))
    assert not server.repos


@pytest.mark.parametrize("of_demo", [False, True])
def test_paths_of_this_machine_are_names(of_demo: bool, adapter: Path, llama: Path, tmp_path: Path) -> None:
    """The card that a run is saved with lists its settings, data among them."""
    data = tmp_path / "customers" / "mine.jsonl"
    data.parent.mkdir()
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    path = demo.folder() if of_demo else llama
    config = make(
        TINY | {"base_model": "demo" if of_demo else str(llama), "dataset": str(data), "system_prompt": "Be kind."}
    )
    run = Run(Path(shutil.copytree(adapter, tmp_path / "runs" / "mine")))
    (run.path / "run.json").write_text(json.dumps({"schema": 1, "config": config.model_dump()}))
    peft = json.loads((run.path / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(path)}
    (run.path / "adapter_config.json").write_text(json.dumps(peft))
    card = model_card(run, config, Base(config.base_model, str(path), None, "abc"))
    (run.path / "README.md").write_text(f"{card}\nSee {Path.home()}/notes/secret/plan.md\n")
    assert str(path) in card and str(data) in card
    parcel = publish.pack(run.path, "")
    texts = {file.name: file.source.decode() for file in parcel.files if isinstance(file.source, bytes)}
    assert texts.keys() == {"README.md", "adapter_config.json"}
    places = (path, data.parent, run.path.parent, Path.home() / "notes")
    assert not [place for text in texts.values() for place in places if str(place) in text]
    assert "| dataset | mine.jsonl |" in texts["README.md"] and "See plan.md" in texts["README.md"]
    base = demo.HUB_ID if of_demo else None
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == base
    assert yaml.safe_load(texts["README.md"].split("---")[1]).get("base_model") == base
    assert of_demo or f'from_pretrained("{llama.name}")' in texts["README.md"]
    assert of_demo or any(f"'{llama.name}' is no model of the hub" in remark for remark in parcel.remarks)


def test_a_tokenizer_is_never_rewritten(adapter: Path, tmp_path: Path) -> None:
    """Its words may look like paths."""
    folder = Path(shutil.copytree(adapter, tmp_path / "data"))
    for path in (str(tmp_path), "/data"):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {path: 1}}}))
        if path == "/data":
            parcel = publish.pack(folder, "")
            assert (
                next(file.source for file in parcel.files if file.name == "tokenizer.json") == folder / "tokenizer.json"
            )
        else:
            with pytest.raises(UserError, match=r"The file tokenizer\.json has the path"):
                publish.pack(folder, "")


def test_a_card_with_a_broken_header_is_told(adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    (folder / "README.md").write_text("---\ntags: [a\n---\n")
    with pytest.raises(UserError, match=r"The header of README\.md is no YAML"):
        publish.pack(folder, "")
    for text in ("---\n- a\n---\nx", "---\n---\nx", "---\nx", "", "x"):
        (folder / "README.md").write_text(text)
        card = next(file.source for file in publish.pack(folder, "").files if file.name == "README.md")
        assert isinstance(card, bytes) and yaml.safe_load(card.decode().split("---")[1])["library_name"] == "peft"
    (folder / "README.md").unlink()
    assert any("no README.md" in remark for remark in publish.pack(folder, "").remarks)


@pytest.mark.slow
def test_an_export_is_made_and_pushed_and_then_pushed_as_it_is(
    bloom_runs: dict[str, Run], bloom: Path, server: HubServer, tmp_path: Path
) -> None:
    words = ["--to", "merged", "--rows", "0", "--out", str(tmp_path / "m"), "--push", "me/merged"]
    run = Run(Path(shutil.copytree(bloom_runs["none"].path, tmp_path / "run")))
    done = command(run.path, *words)
    assert done.stdout.endswith(f"{server.url}/me/merged\n")
    files = server.repos["me/merged"].files
    assert files.keys() == {path.name for path in (tmp_path / "m").iterdir()} - {job.RECORD}
    assert not any(str(bloom).encode() in body for body in files.values())
    assert files["model.safetensors"] == (tmp_path / "m" / "model.safetensors").read_bytes()
    assert "merged" in yaml.safe_load(files["README.md"].decode().split("---")[1])["tags"]
    assert [(one.repo, one.private, one.what) for one in push_job.pushes(run)] == [("me/merged", True, "m")]
    done = command(run.path, *words, "--push-existing")
    assert "is this export already: it is pushed as it is" in done.stderr and server.repos["me/merged"].commits == 1
    done = command(bloom_runs["all"].path, *words, "--push-existing", expect=2)
    assert "is there already: delete it" in done.stderr


def test_the_page_pushes_in_a_child_and_keeps_no_token(
    server: HubServer, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is under way the token is in no argument; after it in no file; what was pushed is known."""
    import psutil

    monkeypatch.setenv("HF_TOKEN", "hf_" + "O" * 30)  # the owner's, who is not asked
    run = finished_run(adapter, tmp_path / "run")
    server.seconds = 0.7
    push_job.start(run, Push("me/small"), WRITE)
    seen = []
    while push_job.state(run).running:
        children = [child.cmdline() for child in psutil.Process().children(recursive=True)]
        seen += [line for line in children if push_job.MODULE in line]
        time.sleep(0.1)
    assert seen and not any(WRITE in word for line in seen for word in line)
    assert push_job.state(run).fault == "" and server.repos["me/small"].commits == 1
    assert push_job.pushes(run)[-1].url == f"{server.url}/me/small"
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert WRITE.encode() not in file.read_bytes(), file
    assert all(key in (None, f"Bearer {WRITE}") for _, _, key in server.asked)
    assert not locks.readers(run.path)


def test_what_the_page_pushes_of_an_adapter_from_elsewhere_is_shown(
    server: HubServer, adapter: Path, tmp_path: Path
) -> None:
    """It has no run.json; the page has begun a push there."""
    run = Run(Path(shutil.copytree(adapter, tmp_path / "theirs")))
    (run.path / push_job.JOB.progress).write_text("")
    pushed(run.path, Push("me/small"))
    assert f"{server.url}/me/small</a> (private)" in status(push_job.state(run), push_job.pushes(run))


def test_a_push_that_fails_in_the_child_is_told_without_the_token(
    server: HubServer, adapter: Path, tmp_path: Path
) -> None:
    run = finished_run(adapter, tmp_path / "run")
    server.fail("/commit/", 413, 99, f"no room for {WRITE}")
    push_job.start(run, Push("me/small"), WRITE)
    while push_job.state(run).running:
        time.sleep(0.1)
    assert "takes no files as large" in push_job.state(run).fault
    assert not any(WRITE in (run.path / name).read_text() for name in ("push.jsonl", "push.log"))


@pytest.mark.attack("the owner's hub token, by a guest of the page who pushes")
def test_guests_push_with_no_login_of_the_owner(
    server: HubServer, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Attempts
) -> None:
    import gradio as gr

    store = RunStore(tmp_path / "adapters", [tmp_path])
    with gr.Blocks():
        guests, owner = HubPanel(store), HubPanel(RunStore(tmp_path / "adapters"))
    warned: list[str] = []
    monkeypatch.setattr("qlora_gui.ui.actions.warn", lambda error: warned.append(str(error)))
    run = finished_run(adapter, tmp_path / "adapters" / "a")
    for typed in ("", " ", "\n", None, False, 0, [], {}):
        attempt("so the login of this machine is not used" in guests.who(typed), f"who: {typed!r}")
        guests.press(["a"], "adapter", "me/small", False, typed)
        guests.press_again(["a"], "adapter", "me/small", False, typed, ("a", Push("me/small")))
        attempt(len(warned) == 2 and "type a token of your own" in warned[0] == warned[1], f"push: {typed!r}")
        warned.clear()
    for typed in ("hf_wrong", ["hf_"], {"a": 1}, True):
        attempt("Logged in" not in guests.who(typed), typed)
        guests.press(["a"], "adapter", "me/small", False, typed)
    attempt(
        not server.repos and all(key != f"Bearer {WRITE}" for _, _, key in server.asked), "the owner's token was sent"
    )
    attempt(not push_job.state(run).running, "a push was begun")
    assert guests.who(READ) == owner.who(READ) and "Logged in as me" in owner.who("")
    warned.clear()
    guests.press([], "adapter", "me/small", False, WRITE)
    attempt(warned == ["Choose a run first."], "no run")
    asked = ("a", Push("me/small"))
    for changed in (("adapter", "me/other", False), ("adapter", "me/small", True), ("x", "me/small", False)):
        warned.clear()
        owner.press_again(["a"], *changed, WRITE, asked)
        attempt(len(warned) == 1 and not push_job.state(run).running and not server.repos, changed)
    for what in ("../../elsewhere", str(tmp_path), "", None, ["adapter"]):
        warned.clear()
        guests.press(["a"], what, "me/small", False, WRITE)
        attempt(warned and "has no export" in warned[0] and not server.repos, what)
