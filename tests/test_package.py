"""The program as a package: a wheel that works from any folder, and requirements that say the same wherever they stand."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import lock
from tests.small_models import make_llama

ROOT = Path(__file__).parents[1]


def test_the_package_requires_what_requirements_txt_does() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == lock.requirements(ROOT / "requirements.txt")


def test_the_lock_names_a_version_for_everything() -> None:
    known = {line.partition("==")[0]: line.partition("==")[2] for line in lock.requirements(lock.LOCK)}
    assert all(known.values())
    for line in lock.requirements(ROOT / "requirements.txt"):
        wanted = Requirement(line)
        assert wanted.specifier.contains(known[wanted.name.lower()]), f"{line} does not allow what is locked"
    now = {line.partition("==")[0] for line in lock.locked().splitlines()}
    assert {*known} == now - {line for line in now if line.startswith("#")}, "other packages: python -m tests.lock"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, installed without its dependencies into a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    tree = folder / "tree"
    tree.mkdir()
    shutil.copytree(ROOT / "qlora_gui", tree / "qlora_gui", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, tree], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, cwd=folder)
    return folder / "site"


def called(site: Path, cwd: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """`qlora-gui` from another folder, as its console script starts it."""
    script = site / "bin" / "qlora-gui"
    env = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )


def test_the_installed_command_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Two and two?", "completion": "Four."}\n' * 3)
    base = str(make_llama(tmp_path / "base"))
    shown = called(installed, tmp_path, "--help")
    assert shown.returncode == 0 and "preview" in shown.stdout and "qlora-gui COMMAND --help" in shown.stdout
    fits = called(installed, tmp_path, "fit", "--preset", "experiment-3", "--memory", "16GB", "--json")
    assert fits.returncode == 0, fits.stderr
    assert json.loads(fits.stdout)["verdict"] == "fits"
    seen = called(
        installed, tmp_path, "preview", "--base-model", base, "--dataset", "rows.jsonl", "--rows", "2", "--json"
    )
    assert seen.returncode == 0, seen.stderr
    rows: list[dict[str, Any]] = json.loads(seen.stdout)["rows"]
    assert len(rows) == 2 and "Four." in "".join(text for text, learned in rows[0]["pieces"] if learned)
    demo = called(installed, tmp_path, "fit", "--memory", "4GB")  # the demo's data and preset are in the wheel
    assert demo.returncode == 0, demo.stderr


def test_what_is_installed_serves_the_page_and_keeps_runs_where_it_was_started(installed: Path, tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(installed)}
    script = [sys.executable, "-u", str(installed / "bin" / "qlora-gui"), "--no-token"]
    with subprocess.Popen(script, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        said = next((line for line in page.stdout if "The page is at" in line), "")
        page.terminate()
    assert "http://127.0.0.1" in said
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Two and two?", "completion": "Four."}\n' * 8)
    words = ["--base-model", str(make_llama(tmp_path / "base")), "--dataset", "rows.jsonl", "--max-steps", "1"]
    trained = called(installed, tmp_path, "train", "--name", "here", *words, "--answers", "0", "--max-length", "32")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (tmp_path / "adapters" / "here" / "adapter_model.safetensors").is_file()
