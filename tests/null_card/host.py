"""The tests' side of the null card: functions of `tests.null_card.inside` are called in processes that run on one."""

import json
import os
import select
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.null_card import build
from tests.null_card.cards import T4, Card

ROOT = Path(__file__).parents[2]
VARIABLE = "QLORA_GUI_NULL_CARD"


class NullCard:
    """A compiled null runtime, and the python of an environment with torch's CUDA build that runs on it.

    A process for each card is kept, since it takes 10 s and more to import what it runs: `close` ends them.
    """

    def __init__(self, python: str):
        self.python = python
        self.runtime = build.built(_headers(python))
        self._children: dict[str, _Child] = {}

    def environment(
        self, card: Card = T4, native: bool = False, devices: int = 1, smi: bool = True, **settings: str
    ) -> dict[str, str]:
        """The variables of a process that runs on `card`; without `smi` there is no nvidia-smi, as in many containers.

        `native`: matrix products are not computed either (see `tests.null_card.native`).
        """
        libraries = ["libcudart.so.13"] + ["libcublas.so.13", "libcublasLt.so.13"] * native
        path = os.environ.get("PATH", "")
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **outside,
            # uv compiles nothing: else every child would compile all of torch's modules, which takes longer than they do
            "PYTHONPYCACHEPREFIX": str(build.folder() / "bytecode"),
            **card.environment(devices),
            "PATH": f"{self.runtime}:{path}" if smi else path,
            "LD_PRELOAD": " ".join(str(self.runtime / name) for name in libraries),
            "LD_LIBRARY_PATH": str(self.runtime),
            "NULLCUDA_LOUD": "0" if native else "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **settings,
        }

    def ask(
        self,
        function: str,
        card: Card = T4,
        *,
        native: bool = False,
        devices: int = 1,
        smi: bool = True,
        fresh: bool = False,
        seconds: float = 400,
        settings: dict[str, str] | None = None,
        **arguments: Any,
    ) -> Any:
        """Call `module:function` of `tests.null_card.inside` on `card` with JSON arguments, and give its JSON result.

        By default values are true and operators are computed on the CPU (`emulate`); `native` runs torch's CUDA code
        to its end and computes nothing (`native`). `settings` are more environment variables. `fresh`: in a process
        where nothing was called before. Raises AssertionError with the traceback where the function raises, and with
        the end of the output where its process dies or takes longer than `seconds`.
        """
        key = json.dumps([card.name, native, devices, smi, settings])
        if fresh and key in self._children:
            self._children.pop(key).close()
        if key not in self._children:
            environment = self.environment(card, native, devices, smi, **(settings or {}))
            self._children[key] = _Child(self.python, "native" if native else "emulate", environment)
        try:
            return self._children[key].ask(function, arguments, seconds)
        except _Gone as error:
            self._children.pop(key).close()
            raise AssertionError(f"{function} on {card.name}: {error}") from None

    def close(self) -> None:
        while self._children:
            self._children.popitem()[1].close()


class _Gone(Exception):
    """The child died, or does not answer."""


class _Child:
    def __init__(self, python: str, mode: str, environment: dict[str, str]):
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `close`
        self.process = subprocess.Popen(
            [python, "-m", "tests.null_card.child", mode],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.output,
            text=True,
        )

    def ask(self, function: str, arguments: dict[str, Any], seconds: float) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"function": function, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.output.seek(0)
            what = "it died" if ready else f"it took longer than {seconds} s"
            raise _Gone(f"{what}; its last words:\n{self.output.read()[-6000:]}")
        answer = json.loads(line)
        assert "result" in answer, answer["failure"]
        return answer["result"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.output.close()


def _headers(python: str) -> Path:
    """The headers of CUDA 13 in an environment. Raises RuntimeError where it has no CUDA build of torch."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found = Path(done.stdout.strip()) / "nvidia" / "cu13" / "include"
    if not (found / "driver_types.h").is_file():
        raise RuntimeError(f"{VARIABLE}={python} has no CUDA 13 build of torch: python -m tests.null_card makes one.")
    return found
