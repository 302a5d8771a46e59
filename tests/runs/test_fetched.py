"""Adapters brought into the store, from a hub on this machine and from folders: what is taken, said, refused and recorded."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.runs import fetched
from qlora_gui.runs.store import RunStore
from tests.adapters import made_adapter
from tests.elsewhere import MISHAPS, copied, shaped
from tests.hub_server import COMMIT, HubServer, serving

OTHER = "f" * 40


@pytest.fixture(scope="module")
def foreign(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_adapter(llama, tmp_path_factory.mktemp("foreign") / "made", 1, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def server(foreign: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    pickled = copied(foreign, tmp_path / "pickled")
    MISHAPS["pickle"][0](pickled / "adapter_model.safetensors")
    repositories = {
        "me/full": shaped(foreign, tmp_path / "full", "trainer's leftovers"),
        "me/gated": foreign,
        "me/whole": llama,
        "me/deeper": copied(foreign, tmp_path / "deeper" / "final").parent,
        "me/pickled": pickled,
    }
    (tmp_path / "full" / "run.json").write_text("{}")  # would make it a run of this program
    (tmp_path / "full" / "modeling.py").write_text("raise SystemExit")
    with serving(repositories, frozenset({"me/gated"})) as hub_server:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "answers", lambda: True)
        yield hub_server


def test_peft_and_tokenizer_files_alone_are_fetched(server: HubServer, store: RunStore) -> None:
    said: list[str] = []
    folder = fetched.find("me/full", store, said.append)
    assert folder == store.root / "me--full" and store.get("me--full").state() == "made elsewhere"
    assert {path.name for path in folder.iterdir()} <= {*fetched.TAKEN, fetched.RECORD}
    assert (folder / "adapter_model.safetensors").is_file() and not folder.is_symlink()
    for name in ("modeling.py", "run.json", "optimizer.pt", "training_args.bin"):
        assert not any(path.endswith(name) for path in server.asked), name
        assert name in json.loads((folder / fetched.RECORD).read_text())["left"]
    assert "left out: checkpoint-500/adapter_config.json" in said[-1]
    assert fetched.source(folder) == f"me/full on the hub, revision {COMMIT}"


def test_a_commit_is_fetched_once_and_another_beside_it(
    server: HubServer, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetched.bring("me/full", store, lambda text: None)
    server.asked.clear()
    said: list[str] = []
    assert fetched.bring(f"me/full@{COMMIT}", store, said.append) == first and "already" in said[-1]
    assert not any("/resolve/" in path for path in server.asked)
    server.commits["me/full"] = OTHER
    second = fetched.bring("me/full", store, lambda text: None)
    assert second.name == "me--full--ffffffff" and first.is_dir()
    monkeypatch.setattr(hub, "answers", lambda: False)
    assert fetched.bring("me/full", store, said.append) == second and "the hub does not answer" in said[-1]
    assert fetched.bring(f"me/full@{COMMIT}", store, said.append) == first
    for folder in (first, second):
        shutil.rmtree(folder)
    again = fetched.bring(f"me/full@{OTHER}", store, said.append)  # from the hub's cache
    assert fetched.source(again).endswith(OTHER)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("me/gated", "only to those whom its owner has let in"),
        ("me/whole", "is no adapter: it is a whole model, which can be named as a base"),
        ("me/deeper", "is no adapter: it has no adapter_config.json; its folder final has one"),
        ("me/pickled", "has no adapter_model.safetensors: other formats can run code"),
        ("me/none", "knows no adapter 'me/none' that you may read"),
        ("me/full@v9", "knows no revision 'v9' of the adapter"),
        ("me/full@../x", "neither a folder nor a run, and no hub id"),
        ("me", "neither a folder nor a run, and no hub id"),
    ],
)
def test_what_is_no_adapter_is_told_and_leaves_nothing(
    server: HubServer, store: RunStore, named: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        fetched.find(named, store, lambda text: None)
    assert not store.root.exists() or not list(store.root.iterdir())


def test_without_a_hub_it_is_told(server: HubServer, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda: False)
    with pytest.raises(UserError, match="is not in the local cache, and the hub does not answer"):
        fetched.find("me/full", store, lambda text: None)


def test_a_folder_is_copied_under_a_name_that_says_something(foreign: Path, store: RunStore, tmp_path: Path) -> None:
    full = shaped(foreign, tmp_path / "mine" / "checkpoint-500", "trainer's leftovers")
    folder = fetched.bring(str(full), store, lambda text: None)
    assert folder.name == "mine-checkpoint-500" and not (folder / "optimizer.pt").exists()
    assert fetched.bring(str(full), store, lambda text: None).name == "mine-checkpoint-500-2"
    assert fetched.bring(folder.name, store, lambda text: None) == folder
    (full / "README.md").unlink(missing_ok=True)
    (full / "README.md").symlink_to(Path(__file__))
    with pytest.raises(UserError, match="a symbolic link that leads out of its folder"):
        fetched.bring(str(full), store, lambda text: None)
    assert not list(store.root.glob(".fetching-*"))


def test_what_lies_in_the_store_is_not_copied(foreign: Path, store: RunStore) -> None:
    mine = copied(foreign, store.root / "mine")
    said: list[str] = []
    assert fetched.bring(str(mine), store, said.append) == mine and not said
    assert [path.name for path in store.root.iterdir()] == ["mine"]


def test_odd_names_and_files_are_told(foreign: Path, store: RunStore, tmp_path: Path) -> None:
    """A sentence that blames what is at fault: not the store, where it is the folder that is copied."""
    with pytest.raises(UserError, match="There is no adapter 'x"):
        fetched.bring("x" * 5000, store, print)
    latin = copied(foreign, tmp_path / os.fsdecode(b"f\xfcr"))
    with pytest.raises(UserError, match=r"udcfcr' is no text in UTF-8: rename it"):
        fetched.bring(str(latin), store, print)
    mine = copied(foreign, tmp_path / "mine")
    (mine / os.fsdecode(b"f\xfcr.txt")).write_text("")
    folder = fetched.bring(str(mine), store, print)
    assert "f?r.txt" in json.loads((folder / fetched.RECORD).read_text())["left"]
    (mine / "vocab.json").mkdir()
    with pytest.raises(UserError, match=r"The adapter cannot be copied: .*is a folder") as caught:
        fetched.bring(str(mine), store, print)
    assert "writable" not in str(caught.value)


def test_guests_bring_from_the_hub_and_from_folders_they_may_name(
    server: HubServer, foreign: Path, tmp_path: Path
) -> None:
    guests = RunStore(tmp_path / "adapters", [tmp_path / "allowed"])
    assert fetched.bring("me/full", guests, lambda text: None).is_dir()
    with pytest.raises(UserError, match="in none of the folders that may be named"):
        fetched.bring(str(foreign), guests, lambda text: None)
    copied(foreign, tmp_path / "allowed" / "fine")
    assert fetched.bring(str(tmp_path / "allowed" / "fine"), guests, lambda text: None).is_dir()


def test_a_name_of_the_store_goes_before_the_hub(foreign: Path, store: RunStore) -> None:
    copied(foreign, store.root / "mine")
    copied(foreign, store.root / "outer" / "final")
    assert fetched.find("mine", store, print) == store.root / "mine"
    assert fetched.find("outer/final", store, print) == store.root / "outer" / "final"
    assert fetched.find(str(foreign), store, print) == foreign
