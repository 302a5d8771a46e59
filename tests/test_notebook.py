"""docs/colab.ipynb, cell by cell: the real program behind it, and stand-ins for what only Colab and Kaggle have."""

import json
import os
import re
import stat
import sys
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_gui.runs.store import RunStore
from tests.notebook import Notebook, words_of

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "colab.ipynb"
SETTINGS = {"max_length": 96, "max_steps": 2, "batch_size": 2, "gradient_accumulation": 1, "eval_steps": 2}
# python3 of the runtime: makes an environment that has this one's packages, and installs nothing.
_PYTHON = """#!/bin/sh
echo "$@" >> "$INSTALLED"
case "$*" in
  "-m venv --without-pip "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python";;
  "-m venv "*) echo "Error: ensurepip is not available"; exit 1;;
  "-m pip "*) if [ -n "$NO_INDEX" ]; then echo "ERROR: Could not find a version"; exit 1; fi;;
  *) exec {python} "$@";;
esac
"""
_SMI = """#!/bin/sh
if [ "$*" = "--query-gpu=driver_version --format=csv,noheader" ] && [ -n "$DRIVER" ]; then echo "$DRIVER"; else exit 9; fi
"""


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Notebook]:
    """A session of Colab: `drive` there or not, a driver of this version, a runtime without ensurepip."""

    def session(driver: str = "580.82.07", has_drive: bool = True, **more: str) -> Notebook:
        content, programs = tmp_path / "content", tmp_path / "programs"
        for folder in (content, programs, tmp_path / "temporary"):
            folder.mkdir()
        _program(programs / "python3", _PYTHON.replace("{python}", sys.executable))
        _program(programs / "nvidia-smi", _SMI)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
        google = types.ModuleType("google.colab")
        mounted: list[str] = []
        google.drive = types.SimpleNamespace(mount=mounted.append)  # type: ignore[attr-defined]
        google.mounted = mounted  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "google.colab", google if has_drive else None)
        search = os.pathsep.join([str(ROOT / "tests" / "colab_like"), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": search}
        environment |= {"INSTALLED": str(tmp_path / "installed"), "DRIVER": driver} | more
        notebook = Notebook(FILE, content, environment)
        notebook.names["Path"] = Path
        return notebook

    return session


def _program(path: Path, body: str) -> None:
    path.write_text(body, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def installed(notebook: Notebook) -> list[str]:
    """What pip was asked for, without its own options."""
    lines = Path(notebook.environment["INSTALLED"]).read_text(encoding="utf-8").splitlines()
    return [line.partition(" install --quiet ")[2] for line in lines if " install " in line]


def test_it_is_a_notebook_without_outputs_whose_cells_have_names() -> None:
    told = json.loads(FILE.read_text(encoding="utf-8"))
    assert (told["nbformat"], told["nbformat_minor"]) == (4, 5) and told["metadata"]["accelerator"] == "GPU"
    ids = [cell["id"] for cell in told["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in told["cells"]:
        if cell["cell_type"] == "code":
            assert (
                cell["outputs"] == [] and cell["execution_count"] is None and cell["source"][0].startswith("#@title ")
            )


@pytest.mark.slow
def test_all_cells_from_top_to_bottom(colab: Callable[..., Notebook], llama: Path, tmp_path: Path) -> None:
    notebook = colab()
    (notebook.folder / "clone").symlink_to(ROOT)
    notebook.run("program")
    assert notebook.names["ROOT"].resolve() == ROOT and not notebook.commands
    notebook.run("install")
    requirements = str(notebook.names["requirements"])
    assert installed(notebook) == ["pip", f"-r {requirements}"] and (ROOT / "requirements.txt").samefile(requirements)
    notebook.run("adapters", ON_DRIVE=False)
    assert notebook.names["ADAPTERS"] == notebook.names["ROOT"] / "adapters"
    notebook.names["ADAPTERS"] = (
        tmp_path / "My Drive" / "adapters"
    )  # with a space, as Drive's folder is called in places
    notebook.run("check")
    assert notebook.names["_exit_code"] == 0, "\n".join(notebook.lines)

    (tmp_path / "tiny.yaml").write_text(json.dumps(SETTINGS | {"probe_prompts": 0}), encoding="utf-8")
    words = f"--config {tmp_path / 'tiny.yaml'} --base-model {llama} --name one --answers 1"
    notebook.run("train", SETTINGS=words)
    assert notebook.names["_exit_code"] == 0, "\n".join(notebook.lines)
    assert any(line.startswith("Adapter:") for line in notebook.lines)
    (run,) = RunStore(notebook.names["ADAPTERS"]).all()
    assert run.state() == "finished" and run.has_adapter()

    opened = notebook.start("open")
    try:
        said = _wait_for(notebook, r"password (\S+)")
        page = next(found.group() for line in notebook.lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        assert any("https://colab-like.gradio.live" in line for line in notebook.lines)
        assert _ask(f"{page}/gradio_api/info") == 401
        assert _login(page, "qlora", "guess") == 400 and _login(page, "qlora", said) == 200
    finally:
        notebook.interrupt()
    opened.join(60)
    assert not opened.is_alive() and notebook.names["_exit_code"] == 0
    assert "The page is closed; a run that is training goes on." in notebook.lines


def _wait_for(notebook: Notebook, pattern: str, seconds: float = 120) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in list(notebook.lines):
            if found := re.search(pattern, line):
                return found.group(1)
        time.sleep(0.2)
    raise AssertionError("\n".join(notebook.lines))


def _ask(address: str, data: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(address, data, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def _login(page: str, user: str, password: str) -> int:
    return _ask(f"{page}/login", urllib.parse.urlencode({"username": user, "password": password}).encode())


@pytest.mark.parametrize(
    ("driver", "first"),
    [
        ("580.82.07", ""),
        ("590.10", ""),
        ("550.54.15", "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126"),
        ("", ""),
    ],
)
def test_an_older_driver_gets_the_build_for_cuda_12(
    driver: str, first: str, colab: Callable[..., Notebook], capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = colab(driver=driver)
    notebook.names["ROOT"] = ROOT
    notebook.run("install")
    assert installed(notebook) == ["pip", *filter(None, [first]), f"-r {ROOT / 'requirements.txt'}"]
    assert ("No GPU: choose one" in capsys.readouterr().out) == (not driver)


def test_the_build_for_cuda_12_is_of_the_torch_that_is_required() -> None:
    """Else the line after it would take another one."""
    assert "torch==2.13.0\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")


def test_an_installation_that_fails_stops_the_notebook(colab: Callable[..., Notebook]) -> None:
    notebook = colab(NO_INDEX="1")
    notebook.names["ROOT"] = ROOT
    with pytest.raises(RuntimeError, match="installation failed"):
        notebook.run("install")
    assert "ERROR: Could not find a version" in notebook.lines


def test_without_a_clone_it_is_asked_for_the_address_and_clones_it(
    colab: Callable[..., Notebook], tmp_path: Path
) -> None:
    notebook = colab()
    with pytest.raises(RuntimeError, match="Fill in REPOSITORY"):
        notebook.run("program")
    with pytest.raises(RuntimeError, match="could not be cloned"):
        notebook.run("program", REPOSITORY=str(tmp_path / "nowhere"))
    notebook.run("program", REPOSITORY=str(ROOT))
    assert (notebook.names["ROOT"] / "app.py").is_file() and words_of(notebook.commands[-1])[:2] == ["git", "clone"]


def test_adapters_are_kept_on_drive_where_there_is_one(
    colab: Callable[..., Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(Path, "mkdir", lambda self, **how: made.append(self))
    notebook = Notebook(FILE, Path.cwd(), os.environ)
    google = types.SimpleNamespace(drive=types.SimpleNamespace(mount=lambda place: made.append(Path(place))))
    monkeypatch.setitem(sys.modules, "google.colab", google)
    notebook.names |= {"Path": Path, "ROOT": ROOT}
    notebook.run("adapters")
    drive = Path("/content/drive")
    assert made == [drive, drive / "MyDrive" / "qlora_gui" / "adapters"] and notebook.names["ADAPTERS"] == made[1]


def test_on_kaggle_adapters_are_kept_where_its_versions_are(
    colab: Callable[..., Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = colab(has_drive=False)
    real = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == "/kaggle/working" or real(self))
    monkeypatch.setattr(Path, "mkdir", lambda self, **how: None)
    notebook.names["ROOT"] = ROOT
    notebook.run("adapters")
    assert notebook.names["ADAPTERS"] == Path("/kaggle/working/adapters")


def test_a_check_that_finds_a_fault_stops_the_notebook(colab: Callable[..., Notebook], tmp_path: Path) -> None:
    """The program's part is played here: a real fault needs a GPU."""
    notebook = colab()
    program = notebook.folder / "app.py"
    notebook.names |= {"ROOT": notebook.folder, "PYTHON": Path(sys.executable), "ADAPTERS": tmp_path / "adapters"}
    program.write_text("import sys; sys.exit('--headless-check' in sys.argv)", encoding="utf-8")
    with pytest.raises(RuntimeError, match="check found"):
        notebook.run("check")
    assert words_of(notebook.commands[-1])[1:3] == [str(program), "--headless-check"]
