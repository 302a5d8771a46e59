"""What of a folder goes to the hub, and that nothing private is in it: links, leftovers, paths, tokens."""

import json
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.export import job, publish, push_job
from qlora_gui.runs import fetched
from qlora_gui.runs.store import Run
from tests.conftest import TINY

TOKEN = "hf_" + "A" * 34


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of an adapter and rows of an evaluation beside them; the user's home folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "jo"))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "home" / "jo").mkdir(parents=True)
    save_file({"w": numpy.zeros(2, "float32")}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    (folder / "evaluation.json").write_text("the secret row")
    (folder / "README.md").write_text("# Mine\n")
    return folder


def card(adapter: Path, text: str = "", what: str = "") -> str:
    """The card as it would be pushed, with this text."""
    if text:
        (Path(what or adapter) / "README.md").write_text(text)
    source = next(file.source for file in publish.pack(adapter, what).files if file.name == "README.md")
    return source.decode() if isinstance(source, bytes) else source.read_text()


def exported(folder: Path, **record: object) -> Path:
    folder.mkdir(parents=True)
    save_file({"w": numpy.zeros(2, "float32")}, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "LICENSE"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("# Mine\n")
    (folder / job.RECORD).write_text(json.dumps({"asked": "", "proof": "", "worse": False} | record))
    return folder


@pytest.mark.parametrize("name", ["vocab.json", "README.md", "chat_template.jinja"])
def test_a_link_inside_the_folder_takes_nothing_along(name: str, adapter: Path) -> None:
    """A stranger can prepare one for what an evaluation writes later."""
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to("evaluation.json")
    with pytest.raises(UserError, match="is a symbolic link to another file of the folder"):
        publish.pack(adapter, "")


def test_a_snapshot_of_the_hubs_cache_is_all_links(adapter: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--me--x" / "blobs", tmp_path / "models--me--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    adapter.rename(blobs)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (snapshot / name).symlink_to(blobs / name)
    assert {file.name for file in publish.pack(snapshot, "").files} == {path.name for path in snapshot.iterdir()}


def test_of_an_export_what_no_export_has_is_left_and_named(adapter: Path) -> None:
    """A base's folder can have rows beside its weights, and people put things down anywhere."""
    folder = exported(adapter / "exports" / "merged")
    left = ["customers.json", "evaluation.json", "id_rsa", "notes.txt", "votes.md"]
    for name in left:
        (folder / name).write_text("secret")
    (folder / "data").mkdir()
    parcel = publish.pack(adapter, str(folder))
    assert {file.name for file in parcel.files} == {
        *("model.safetensors", "config.json", "tokenizer.json", "LICENSE", "README.md"),
    }
    assert parcel.remarks[0] == f"Not pushed, because no export has them: {', '.join(sorted([*left, 'data'])[:5])}…."


def test_a_runs_folder_that_is_passed_off_as_an_export_shows_no_rows(adapter: Path) -> None:
    (adapter / "exports").mkdir()
    (adapter / "exports" / "merged").symlink_to("..")
    (adapter / job.RECORD).write_text(json.dumps({"asked": "", "proof": "", "worse": False}))
    parcel = publish.pack(adapter, str(adapter / "exports" / "merged"))
    assert {file.name for file in parcel.files} == {"README.md", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("in /home/bob/acme/rows.jsonl.", "in rows.jsonl."),
        ("`/Users/bob/acme/rows`", "`rows`"),
        (r"C:\Users\Bob\acme\rows", "rows"),
        ("file:///home/bob/rows", "file://rows"),
        ("as /home/bob or /home/bob/", "as ~ or ~/"),
        ("https://acme.org/home/bob/rows", "https://acme.org/home/bob/rows"),
        ("/homes/bob/rows", "/homes/bob/rows"),
    ],
)
def test_home_folders_of_others_in_a_card(text: str, there: str, adapter: Path) -> None:
    """An adapter may have been trained on another machine."""
    assert card(adapter, f"{text}\n").endswith(f"---\n{there}\n")


def test_a_path_is_not_cut_out_of_an_address(adapter: Path) -> None:
    text = f"https://acme.org{adapter}/x"
    assert text in card(adapter, text) and card(adapter, f"See {adapter}/x").endswith("See mine/x")


def test_every_path_that_is_known_is_cut(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative data set, the folder that an adapter was brought from, the home folder, and where links lead."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "rows.jsonl").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "acme")
    monkeypatch.chdir(tmp_path)
    for dataset, text in (
        ("acme/rows.jsonl", "| acme/rows.jsonl |"),
        (f"{tmp_path}/link/rows.jsonl", f"| {tmp_path}/acme/rows.jsonl | {tmp_path}/link/rows.jsonl |"),
    ):
        config = make(TINY | {"base_model": "owner/base", "dataset": dataset})
        (adapter / "run.json").write_text(json.dumps({"schema": 1, "config": config.model_dump()}))
        assert set(card(adapter, text).rpartition("---\n")[2].split()) == {"|", "rows.jsonl"}
    (adapter / fetched.RECORD).write_text(json.dumps({"from": str(tmp_path / "acme" / "theirs")}))
    folder = exported(adapter / "exports" / "merged")
    assert "acme" not in card(adapter, f"elsewhere ({tmp_path}/acme/theirs), {Path.home()}/acme/x", str(folder))


def test_a_path_in_the_card_that_nothing_knows_is_named(adapter: Path, tmp_path: Path) -> None:
    text = f"From {tmp_path}, by /usr/bin/env, not {tmp_path}/gone."
    assert text in card(adapter, text)
    assert f"README.md still names paths that exist on this machine: {tmp_path}." in publish.pack(adapter, "").remarks


def test_paths_anywhere_in_an_adapters_config_are_names(adapter: Path) -> None:
    own = {
        "base_model_name_or_path": "owner/base",
        "target_modules": ["q_proj", "/", "\ud800"],
        "exclude_modules": ".*/x",
    }
    paths = {"corda_config": {"cache_file": "/mnt/acme/c.pt"}, "more": [r"D:\acme\x", "~/acme/y"]}
    (adapter / "adapter_config.json").write_text(json.dumps(own | paths))
    found = next(file.source for file in publish.pack(adapter, "").files if file.name == "adapter_config.json")
    assert isinstance(found, bytes)
    assert json.loads(found) == own | {"corda_config": {"cache_file": "c.pt"}, "more": ["x", "y"]}


def test_a_tokenizer_with_a_path_of_the_home_folder_is_refused(adapter: Path) -> None:
    """Anywhere in it; the examples in somebody's chat template are none."""
    (adapter / "chat_template.jinja").write_text("{# read_file(/home/user/notes/x) #}")
    assert publish.pack(adapter, "").files
    (adapter / "tokenizer.json").write_text(json.dumps([" " * (5 << 20), f"{Path.home()}/acme"]))
    with pytest.raises(UserError, match=r"The file tokenizer\.json has the path '.*/jo/acme' in it"):
        publish.pack(adapter, "")


@pytest.mark.parametrize("name", ["README.md", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"])
def test_no_token_goes_to_the_hub_in_a_file(name: str, adapter: Path) -> None:
    """Older versions of transformers wrote use_auth_token into a tokenizer's config."""
    (adapter / name).write_text(f'{{"use_auth_token": "{TOKEN}"}}')
    with pytest.raises(UserError, match=f"The file {name} has what looks like an access token") as caught:
        publish.pack(adapter, "")
    assert TOKEN not in str(caught.value)
    (adapter / name).write_text('{"use_auth_token": "hf_…", "is": "hf_xet"}')
    assert publish.pack(adapter, "").files


def test_what_a_strangers_folder_says_was_pushed_is_no_link(tmp_path: Path) -> None:
    bad = [
        {"repo": "javascript:alert(1)//x", "private": True, "what": "", "at": 1},
        {"repo": "me/x"},
        3,
        {"repo": "me/<b>", "at": "x"},
    ]
    good = {"repo": "me/x", "private": 1, "what": "<b>", "at": 2}
    (tmp_path / push_job.RECORD).write_text(json.dumps([*bad, good]))
    assert [one.repo for one in push_job.pushes(Run(tmp_path))] == ["me/x"]
    for text in ("{", "[", "[" * 100_000, "null", ""):
        (tmp_path / push_job.RECORD).write_text(text)
        assert push_job.pushes(Run(tmp_path)) == []
