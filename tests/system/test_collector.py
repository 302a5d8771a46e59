"""Imports without the garbage collector: it is on again afterwards, and the programs that import torch make use of it."""

import gc
import re
import subprocess
import sys

import pytest

from qlora_gui.system import collector
from tests.module_graph import ROOT

# Modules that are a process of their own and need the model stack, and what shows that it was imported.
CHILDREN = ["check.worker", "models.ask_torch", "models.render", "simulation.__main__", "simulation.count_parameters"]
CHILDREN += ["training.preview"]


def test_it_is_on_again_also_after_an_import_that_failed() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), collector.paused():
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() >= before + len(kept)


@pytest.mark.parametrize("module", CHILDREN)
def test_a_child_looks_at_its_imports_no_more(module: str) -> None:
    code = f"import gc, qlora_gui.{module}; print(gc.isenabled(), gc.get_freeze_count() > 9 * len(gc.get_objects()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.split() == ["True", "True"], done.stdout + done.stderr


def test_every_program_that_imports_the_model_stack_does() -> None:
    """A new child process is found here: it pays two seconds more without."""
    stack = re.compile(
        r"^ *(?:import|from) (?:torch|transformers|peft|bitsandbytes)\b|import Columns|run import train$", re.M
    )
    for file in sorted((ROOT / "qlora_gui").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text and stack.search(text):
            assert "collector.paused()" in text, file
