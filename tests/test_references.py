"""What a run names: demo, files and folders, names on the hub; where a revision that belongs to none of these is refused."""

from pathlib import Path
from typing import Any

import pytest

from qlora_gui import hub
from qlora_gui.cli import main
from qlora_gui.config import RunConfig, make
from qlora_gui.errors import UserError
from qlora_gui.references import NO_REVISION, DataRef, ModelRef
from qlora_gui.runs import sweep
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.train import form


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


def test_a_base_is_demo_folder_or_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(hub, "require", lambda *about: asked.append(about))
    monkeypatch.chdir(folder.parent)
    (folder.parent / "demo").mkdir()  # the demo it is all the same
    for name, is_demo, place, on_hub in (
        ("demo", True, None, False),
        (str(folder), False, folder, False),
        ("base", False, Path("base"), False),
        ("owner/name", False, None, True),
        (str(folder / "config.json"), False, None, False),
        ("a/b/c", False, None, False),
    ):
        ref = ModelRef.find(name, "v1")
        assert (ref.is_demo, ref.folder, ref.may_be_on_hub) == (is_demo, place, on_hub)
    for name in ("demo", "base", "owner/name"):
        ModelRef.find(name, "v1").check()
    assert asked == [("models", "owner/name", "v1")]
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        ModelRef.find("base").check()
    with pytest.raises(UserError, match=r"'\./no' does not exist"):
        ModelRef.find("./no").check()


def test_data_is_demo_a_path_or_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("demo").touch()
    assert DataRef.find("demo") == DataRef("demo") and DataRef.find("demo").is_demo
    assert DataRef.find("config.json").path == Path("config.json")
    assert DataRef.find("..").path == Path("..") and DataRef.find("owner/name").path is None


def test_a_config_is_made_without_a_look_at_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*about: Any) -> None:
        raise AssertionError(about)

    values = {"base_model": str(folder), "revision": "main", "dataset": str(folder), "accelerate_config": "x.yaml"}
    with monkeypatch.context() as patched:
        for name in ("exists", "is_dir", "is_file", "stat", "open"):
            patched.setattr(Path, name, look)
        assert RunConfig(**values).revision == "main"
        with pytest.raises(UserError, match=f"^{NO_REVISION}"):
            make({"revision": "main"})


@pytest.mark.parametrize("named", ["demo", "folder"])
def test_a_revision_of_what_has_none_is_refused_before_a_run_is_made(
    named: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(folder) if named == "folder" else named
    values: dict[str, Any] = {"base_model": base, "revision": "main"}
    store = RunStore(tmp_path / "runs")
    assert form.judge(values, store) == (None, {"": NO_REVISION})
    with pytest.raises(UserError, match=f"With rank 8: {NO_REVISION}"):
        sweep.expand(values | {"rank": [8, 16]})
    with pytest.raises(UserError, match=f"^{NO_REVISION}\\.$"):
        store.create(make(values))
    for verb in ("train", "fit", "preview"):
        words = [verb, "--base-model", base, "--revision", "main", "--adapters-dir", str(store.root)]
        assert main.main(words) == 2
        assert NO_REVISION in capsys.readouterr().err
    assert not store.root.exists()


def test_a_run_is_read_whatever_lies_here_under_its_bases_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "require", lambda *about: None)
    store = RunStore(tmp_path / "runs")
    run = store.create(make({"base_model": "base", "revision": "v1"}))
    monkeypatch.chdir(folder.parent)
    assert run.config().revision == "v1"
