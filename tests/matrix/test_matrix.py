"""The program on each architecture is what plain transformers + PEFT are; refusals are those the specs expect."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.matrix import table
from tests.matrix.specs import DEFAULT, REFUSED, SLOW, SPECS

Check = Callable[[str], table.Found]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Check]:
    """Gives the results of a spec. One process imports everything once and forks another for each."""
    home = tmp_path_factory.mktemp("matrix")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.matrix", "run", "-", "--home", str(home)],
        cwd=table.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def results(name: str) -> table.Found:
        assert child.stdin and child.stdout
        child.stdin.write(name + "\n")
        child.stdin.flush()
        told = child.stdout.readline()
        file, log = home / "results" / f"{name}.json", home / "results" / f"{name}.log"
        assert file.exists(), f"{told}\n{_tail(log)}"
        return table.read_one(file)

    yield results
    child.stdin.close()  # type: ignore[union-attr]
    child.wait(60)


def _tail(log: Path) -> str:
    return log.read_text()[-3000:] if log.exists() else ""


def _mark(name: str) -> list[pytest.MarkDecorator]:
    return [] if name in DEFAULT else [pytest.mark.slow if name in SLOW else pytest.mark.architecture]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=_mark(name)) for name in SPECS])
def test_an_architecture(name: str, check: Check) -> None:
    found = check(name)
    assert not table.faults(name, found)
    assert found["train"][0] == "ok" or "train" in REFUSED.get(name, {})


def test_expected_refusals_name_specs_and_checks() -> None:
    checks = {key for keys in table.COLUMNS.values() for key in keys}
    for name, expected in REFUSED.items():
        assert name in SPECS
        assert set(expected) <= checks
    assert {*DEFAULT, *SLOW} <= set(SPECS)


def test_the_page_of_models_is_that_of_the_kept_results() -> None:
    about, results = table.stored()
    assert table.DOCUMENT.read_text(encoding="utf-8") == table.document(about, results), "python -m tests.matrix table"
    assert not [fault for name, found in results.items() for fault in table.faults(name, found)]
    assert set(results) == set(SPECS)
