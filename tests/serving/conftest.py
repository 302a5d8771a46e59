"""`qlora-gui serve` as a process, and the real OpenAI client."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from qlora_gui.runs.store import Run

KEY = "a-key-of-the-tests-0123456789"


class Served:
    """The endpoint of a process: where it is, and what it printed."""

    def __init__(self, *words: str, key: str = KEY):
        env = os.environ | ({"QLORA_GUI_API_KEY": key} if key else {})
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "serve", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parents[2],
        )
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)", line)
        assert found, line + self.process.stderr.read()
        self.line, self.url, self.key = line, found.group(1), key

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key or "none", max_retries=0, timeout=60)

    def end(self) -> str:
        """Ctrl+C; returns what was printed after the first line. No thread has ended by an error meanwhile."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        assert self.process.returncode == 0 and "Traceback" not in err, err
        return out


@pytest.fixture(scope="module")
def served(bloom: Path, bloom_runs: dict[str, Run]) -> Iterator[Served]:
    """The small BLOOM with two adapters, one of them with all biases trained."""
    one = Served(*(str(bloom_runs[name].path) for name in ("none", "all")))
    yield one
    if one.process.poll() is None:
        one.end()
