"""Put first on PYTHONPATH: this Python without what Windows' Python lacks, as far as libraries made for this system can
live without it. Modules are taken from this program and its locks alone; names of `os` and `signal`, and /proc, from all.
"""

import builtins
import os
import pathlib
import signal
from typing import Any

ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"}
NAMES = {
    os: "setpriority getpriority nice killpg setsid getpgid O_NOFOLLOW getuid geteuid getgid getegid getloadavg "
    "sched_getaffinity sched_setaffinity chown fchown lchown fchmod mkfifo",
    signal: "pthread_kill pthread_sigmask sigwait alarm setitimer SIGUSR1 SIGUSR2",
}
_import = builtins.__import__


def _imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if name in ABSENT and (globals or {}).get("__name__", "").partition(".")[0] in ("qlora_gui", "filelock"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _import(name, globals, locals, fromlist, level)


def _without_proc(real: Any) -> Any:
    def asked(self: pathlib.Path, *given: Any, **named: Any) -> Any:
        if str(self).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return real(self, *given, **named)

    return asked


os.environ.setdefault("USERNAME", "person")  # Windows sets it, and libraries ask it before they ask for a number
builtins.__import__ = _imported
for module, names in NAMES.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("read_text", "write_text", "iterdir", "open"):
    setattr(pathlib.Path, name, _without_proc(getattr(pathlib.Path, name)))
