"""A tokenizer whose pattern never ends ends its process by a Rust panic, which is no Exception: told as a sentence."""

import json
import shutil
from pathlib import Path

from qlora_gui.config import make
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from tests.conftest import TINY, wait_until_ended

PATTERN = "(([a-z ])+)+!"


def test_a_tokenizer_that_gives_up_is_told_and_no_crash(store: RunStore, llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    told = json.loads((base / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, told["pre_tokenizer"]]}
    (base / "tokenizer.json").write_text(json.dumps(told))
    rows = [{"prompt": "say", "completion": "a" * 60} for _ in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = store.create(make(TINY | {"base_model": str(base), "dataset": str(tmp_path / "rows.jsonl")}))
    launch.start(run, store)
    wait_until_ended(run)
    end = run.events()[0][-1]
    assert end["kind"] == "failed" and end["bug"] is False, end
    assert end["message"].startswith("The tokenizer gave up on a text (")
