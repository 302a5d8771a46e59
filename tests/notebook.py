"""Runs a notebook's cells as IPython would, as far as ours go: `!command`, `name = !command`, `{expression}` in them,
`_exit_code`, and the fields of Colab's forms (`NAME = value  #@param`).
"""

import json
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SHELL = re.compile(r"^(\s*)(?:(\w+)\s*=\s*)?!(.+)$")
_MAGIC = re.compile(r"^\s*(%|\?|get_ipython\(\))")
_FIELD = re.compile(r"^(\w+) = .*#@param .*$")
_EXPRESSION = re.compile(r"\{([^{}]+)\}")


class Notebook:
    """The cells of a file, and what they have done: `commands` as they were given to the shell, `lines` of output."""

    def __init__(self, path: Path, folder: Path, environment: Mapping[str, str]):
        told = json.loads(path.read_text(encoding="utf-8"))
        self.cells = {cell["id"]: "".join(cell["source"]) for cell in told["cells"] if cell["cell_type"] == "code"}
        self.folder, self.environment = folder, dict(environment)
        self.names: dict[str, Any] = {"__name__": "__main__", "_shell": self._shell}
        self.commands: list[str] = []
        self.lines: list[str] = []
        self.child: subprocess.Popen[str] | None = None

    def run(self, cell: str, **fields: Any) -> None:
        """Run one cell with these values in its form. Raises what the cell raises."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            exec(compile(self._python(self.cells[cell], fields), f"<cell {cell}>", "exec"), self.names)
        finally:
            os.chdir(before)

    def start(self, cell: str, **fields: Any) -> threading.Thread:
        """Run one cell that lasts in a thread; what it prints is in `lines`."""
        thread = threading.Thread(target=self.run, args=(cell,), kwargs=fields, daemon=True)
        thread.start()
        return thread

    def interrupt(self) -> None:
        """The stop button of a cell whose command is running."""
        assert self.child is not None
        os.killpg(self.child.pid, signal.SIGINT)

    def _python(self, source: str, fields: Mapping[str, Any]) -> str:
        """A cell as Python. Raises AssertionError for what this cannot run, or a field that the cell does not have."""
        made, left = [], dict(fields)
        for line in source.split("\n"):
            assert not _MAGIC.match(line), f"not run here: {line}"
            if (field := _FIELD.match(line)) and field.group(1) in left:
                made.append(f"{field.group(1)} = {left.pop(field.group(1))!r}")
            elif shell := _SHELL.match(line):
                indent, name, command = shell.groups()
                made.append(f"{indent}{f'{name} = ' if name else ''}_shell({command!r}, {bool(name)})")
            else:
                made.append(line)
        assert not left, f"no such fields: {left}"
        return "\n".join(made)

    def _shell(self, template: str, wants_lines: bool) -> list[str] | None:
        command = _EXPRESSION.sub(lambda found: str(eval(found.group(1), self.names)), template)
        self.commands.append(command)
        self.child = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=self.environment,
            start_new_session=True,
        )
        assert self.child.stdout
        said = []
        for line in self.child.stdout:
            said.append(line.rstrip("\n"))
            self.lines.append(line.rstrip("\n"))
        self.names["_exit_code"] = self.child.wait()
        return said if wants_lines else None


def words_of(command: str) -> list[str]:
    """A command's words, without quotes."""
    return shlex.split(command)
