"""A stop is kept whatever the main thread does: it sleeps, holds something, or does not listen at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_gui.runs.store import Run

ROOT = Path(__file__).parents[2]
BEGIN = """
import sys, time
from pathlib import Path
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run
from qlora_gui.training.interrupts import Interrupted, StopWatch
run = Run(Path(sys.argv[1]))
log = EventLog(run.events_file)
log.append("step", step=7, max_steps=9, loss=1.0)
with StopWatch(run, log) as watch:
    print("ready", flush=True)
"""
BODIES = {
    "blocks": ("    try:\n        time.sleep(60)\n    except Interrupted:\n        sys.exit(3)\n", 3),
    "holds": (
        "    try:\n        with watch.held():\n            end = time.monotonic() + 3\n"
        "            while time.monotonic() < end:\n                time.sleep(0.05)\n            print('whole', flush=True)\n"
        "        time.sleep(60)\n    except Interrupted:\n        sys.exit(4)\n",
        4,
    ),
    "saves": ("    watch.saving()\n    time.sleep(4)\n    sys.exit(5)\n", 5),
    "does not listen": (
        "    while True:\n        try:\n            time.sleep(60)\n        except BaseException:\n            continue\n",
        1,
    ),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_stop_that_does_not_take_is_escalated(what: str, tmp_path: Path) -> None:
    body, code = BODIES[what]
    env = os.environ | {"QLORA_GUI_STOP_SECONDS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BEGIN + body, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout and child.stdout.readline() == "ready\n"
    time.sleep(1.5)
    assert child.poll() is None  # patience is for stops alone
    run = Run(tmp_path)
    run.request_stop()
    said, _ = child.communicate(timeout=30)
    assert child.returncode == code, said
    assert "Not stopped within 1 s" in said and ("whole" in said) == (what == "holds")
    events = [event for event in run.events()[0] if event["kind"] == "stopped"]
    assert [event["step"] for event in events] == ([7] if what == "does not listen" else [])
