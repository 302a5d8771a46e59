"""Operating systems: one package asks which one this is; each of its answers for Windows and macOS; no other module does."""

import ast
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import psutil
import pytest

from qlora_gui import locks
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.files import write_whole
from qlora_gui.runs import launch, several
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import RunStore
from qlora_gui.system import console, files, kind, processes, signals

ROOT = Path(__file__).parents[2]
MODULES = {
    "signal",
    "fcntl",
    "resource",
    "msvcrt",
    "winreg",
    "pwd",
    "grp",
    "termios",
    "pty",
    "tty",
    "platform",
    "ctypes",
}
# Of `os`: what one system lacks, or does otherwise.
NAMES = set(
    "name nice setpriority getpriority kill killpg setsid setpgid getpgid getpgrp getsid fork forkpty getuid geteuid getgid "
    "chmod fchmod lchmod chown umask open symlink readlink replace rename renames mkfifo mknod getloadavg uname "
    "statvfs sysconf sync set_blocking pipe startfile waitpid wait posix_spawn".split()
)
PREFIXES = ("exec", "spawn", "sched_", "posix_", "PRIO_")
FLAGS = {f"O_{name}" for name in "RDONLY WRONLY RDWR CREAT EXCL TRUNC APPEND".split()}  # which all systems have
METHODS = {"chmod", "lchmod", "rename", "symlink_to", "hardlink_to"}
ARGUMENTS = {"start_new_session", "preexec_fn", "creationflags", "process_group"}
PLACES = ("/proc", "/sys/", "/dev/", "/etc/")
# What stays where it is, by file: with the reason why it can run on every system.
ELSEWHERE = {
    "qlora_gui/nvidia.py": {"/proc/driver/nvidia/version"},  # NVIDIA's own file on Linux; no driver where there is none
    "qlora_gui/hardware.py": {"/sys/bus/pci/devices"},  # cards that no driver knows, on Linux; none elsewhere
    "qlora_gui/torch_view.py": {"platform"},  # the machine's name
    "qlora_gui/check/lines.py": {"platform"},  # the machine's name, to be hidden
    "qlora_gui/check/machine.py": {"platform"},  # what system, processor and Python this is, to be told
}


def direct_uses(source: str) -> set[str]:
    """What a module asks of the operating system itself, or leaves to its locale."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.add(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and (
                node.attr in NAMES
                or node.attr.startswith(PREFIXES)
                or (node.attr[:2] == "O_" and node.attr not in FLAGS)
            ):
                found.add(f"os.{node.attr}")
            elif (node.value.id, node.attr) == ("sys", "platform"):
                found.add("sys.platform")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PLACES):
            found.add(node.value)
        elif isinstance(node, ast.Call):
            found |= _calls(node)
    return found


def _calls(node: ast.Call) -> set[str]:
    named = {word.arg: word.value for word in node.keywords}
    found = {word for word in ARGUMENTS if word in named}
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    on = node.func.value if isinstance(node.func, ast.Attribute) else None
    if on is not None and name in METHODS:
        found.add(f".{name}()")
    module = isinstance(on, ast.Name) and on.id in ("files", "dataclasses")
    if on is not None and name == "replace" and len(node.args) == 1 and not named and not module:  # a text's takes two
        found.add(".replace()")
    if "encoding" in named:
        return found
    if (name == "read_text" and not node.args) or (name == "write_text" and len(node.args) < 2):
        found.add(f"{name} without encoding")
    if any(getattr(named.get(word), "value", False) is True for word in ("text", "universal_newlines")):
        found.add("text=True without encoding")
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        place = 0 if name.endswith("TemporaryFile") or (name == "open" and on is not None) else 1
        mode = named.get("mode", node.args[place] if len(node.args) > place else None)
        default = "w+b" if name.endswith("TemporaryFile") else "r"
        word = default if mode is None else getattr(mode, "value", "b")
        if isinstance(word, str) and set(word) <= set("rwxab+t") and "b" not in word:
            found.add(f"{name} without encoding")
    return found


def test_no_other_module_asks_the_operating_system() -> None:
    wrong = {}
    for path in [*(ROOT / "qlora_gui").rglob("*.py"), ROOT / "app.py"]:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("qlora_gui/system/"):
            found = direct_uses(path.read_text(encoding="utf-8")) - ELSEWHERE.get(name, set())
            wrong |= {name: sorted(found)} if found else {}
    assert not wrong, "put it into qlora_gui/system/, with what it is on Windows and on macOS, and a test of that"


@pytest.mark.parametrize(
    "source",
    [
        "import signal",
        "from fcntl import flock",
        "os.kill(1, 9)",
        "os.execv('a', [])",
        "x = os.O_NOFOLLOW",
        "Path('/proc/self/status')",
        "sys.platform == 'win32'",
        "Popen([], start_new_session=True)",
        "run([], text=True)",
        "path.read_text()",
        "path.write_text('a')",
        "open('a')",
        "path.open('w')",
        "part.replace(kept)",
        "folder.chmod(0o700)",
    ],
)
def test_a_direct_use_is_found(source: str) -> None:
    assert direct_uses(source)


def test_what_is_the_same_everywhere_is_not_found() -> None:
    source = """
text.replace("a", "b"); files.replace(a, b); path.open("rb"); open(a, "w", encoding="utf-8"); os.environ; os.path.join(a)
run([], encoding="utf-8"); TemporaryFile(); os.getpid(); os._exit(0); config.replace(rank=1)
"""
    assert not direct_uses(source)


@pytest.mark.slow
def test_every_module_can_be_imported_without_what_windows_lacks() -> None:
    code = (
        "import importlib, pkgutil, qlora_gui\n"
        "for module in pkgutil.walk_packages(qlora_gui.__path__, 'qlora_gui.'):\n"
        "    importlib.import_module(module.name)\n"
        "from qlora_gui.system import files, processes\n"
        "print(files.fcntl, processes.resource)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, env=windows_like()
    )
    assert done.stdout.splitlines()[-1:] == ["None None"], done.stdout + done.stderr


def windows_like(**more: str) -> dict[str, str]:
    """An environment in which children lack what Windows lacks (tests/windows_like)."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "windows_like"), str(ROOT)])} | more


@pytest.mark.slow
def test_a_run_trains_and_is_compared_without_what_windows_lacks_on_a_narrow_console(
    llama: Path, tmp_path: Path
) -> None:
    """The real program from its command line: no flock, no /proc, no priorities, and a stdout of 256 signs."""
    settings = {"max_length": 96, "max_steps": 2, "batch_size": 2, "gradient_accumulation": 1, "eval_steps": 2}
    (tmp_path / "tiny.yaml").write_text(
        json.dumps(settings | {"probe_prompts": 1, "probe_tokens": 4}), encoding="utf-8"
    )
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Сколько {n}?", "completion": f"→ {n} ✓"}) + "\n" for n in range(12)),
        encoding="utf-8",
    )
    words = [
        "--config",
        str(tmp_path / "tiny.yaml"),
        "--base-model",
        str(llama),
        "--dataset",
        str(tmp_path / "rows.jsonl"),
    ]
    to = ["--adapters-dir", str(tmp_path / "adapters")]
    done = subprocess.run(
        [sys.executable, "app.py", "--headless-train", *words, "--name", "one", "--answers", "1", *to],
        capture_output=True,
        cwd=ROOT,
        timeout=600,
        # A cache of its own: without flock a lock is its file, and processes that have flock leave theirs behind.
        env=windows_like(PYTHONIOENCODING="cp1252", QLORA_GUI_CACHE=str(tmp_path / "cache")),
    )
    said = done.stdout.decode("cp1252")
    assert done.returncode == 0, said + done.stderr.decode("utf-8", "replace")
    assert (
        "Finished. Held-out loss" in said
        and "Prompt:  \\u0421\\u043a" in said
        and "Adapter: " in said.split("Base:")[1]
    )
    events = (tmp_path / "adapters" / "one" / "events.jsonl").read_bytes()
    assert b"\r" not in events and "Сколько" in events.decode()


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "read_text", _no_proc(Path.read_text))


def _no_proc(real: Any) -> Any:
    def asked(self: Path, *given: Any, **named: Any) -> str:
        if str(self).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file", str(self))
        found: str = real(self, *given, **named)
        return found

    return asked


def test_this_machine_is_what_it_is() -> None:
    assert not kind.is_windows() and kind.is_mac() == (sys.platform == "darwin")


@pytest.mark.parametrize(
    ("release", "wsl"), [("5.15.167.4-microsoft-standard-WSL2", True), ("6.8.0-45-generic", False)]
)
def test_wsl_is_known_by_its_kernel(release: str, wsl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    assert kind.is_wsl() == wsl == (not kind.can_page_gpu_memory())


def test_a_child_is_out_of_reach_of_the_terminal_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.apart() == {"start_new_session": True}
    monkeypatch.setattr(os, "name", "nt")
    assert processes.apart() == {"creationflags": 0x8000200}  # CREATE_NO_WINDOW and CREATE_NEW_PROCESS_GROUP


def test_a_killed_child_is_known_as_killed_where_the_system_tells(windows: None) -> None:
    assert not processes.was_killed(1) and not processes.was_killed(-9)


def test_a_killed_child_is_known_as_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child.kill()
    assert processes.was_killed(child.wait()) and not processes.was_killed(1) and not processes.was_killed(None)


def test_windows_makes_way_by_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(nice=asked.append))
    monkeypatch.setattr(os, "name", "nt")
    processes.set_niceness(5)
    processes.set_niceness(0)
    assert asked == [0x4000, 0x20]  # BELOW_NORMAL_PRIORITY_CLASS, NORMAL_PRIORITY_CLASS


def test_windows_and_macos_bound_no_memory_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not processes.limit_memory(2**40)
    monkeypatch.setattr(processes, "resource", None)
    assert not processes.limit_memory(2**40)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's data")
def test_a_memory_bound_holds() -> None:
    code = (
        "from qlora_gui.system import processes\nassert processes.limit_memory(2**28)\n"
        "try: bytearray(2**29)\nexcept MemoryError: print('held')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "held\n", done.stderr


def test_the_peak_of_memory_is_found_with_and_without_proc(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kilobytes = SimpleNamespace(getrusage=lambda who: SimpleNamespace(ru_maxrss=123 * 2**20), RUSAGE_SELF=0)
    monkeypatch.setattr(processes, "resource", kilobytes)
    assert processes.peak_memory() == 123 * 2**20  # macOS counts bytes
    assert processes.cpu_flags() == []
    monkeypatch.setattr(processes, "resource", None)
    memory = SimpleNamespace(rss=5, peak_wset=7)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: memory))
    assert processes.peak_memory() == 7  # Windows


def test_the_peak_of_memory_is_that_of_the_process() -> None:
    code = "from qlora_gui.system import processes\na = processes.peak_memory()\nb = bytearray(2**27)\ndel b\n"
    code += "print(processes.peak_memory() - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert 2**27 * 0.9 < int(done.stdout) < 2**27 * 1.5, done.stderr


def test_only_where_a_process_can_be_begun_again_it_is(windows: None) -> None:
    assert not processes.can_begin_again()


def test_a_hanging_main_thread_is_interrupted_on_windows_too() -> None:
    """By Python's own means where there is no pthread_kill; it then comes when Python runs again."""
    code = """
import signal, sys, threading, time
if "windows" in sys.argv: del signal.pthread_kill
from qlora_gui.system import signals
came = []
before = signals.on_interrupt(lambda number, frame: came.append(number))
threading.Timer(0.2, signals.interrupt_main_thread).start()
end = time.monotonic() + 20
while not came and time.monotonic() < end: time.sleep(0.05)
signals.restore(before)
print(came == [signal.SIGINT], signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    for more in ([], ["windows"]):
        done = subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.stdout == "True True\n", done.stderr


def test_windows_own_key_ends_a_program_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(signals.stop_signals()) == {signal.SIGINT, signal.SIGTERM}
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert set(signals.stop_signals()) == {signal.SIGINT, signal.SIGTERM, 21}


def test_a_request_to_end_reaches_a_process_whose_main_thread_hangs() -> None:
    code = """
import hashlib, os
from qlora_gui.system import signals
signals.watch_terminate(lambda: (print("ended", flush=True), os._exit(3)))
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # one call, outside of Python
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert child.stdout and child.stdout.readline() == "ready\n"
        child.terminate()
        assert child.stdout.readline() == "ended\n" and child.wait(10) == 3
    finally:
        child.kill()
        child.wait()


def test_a_file_that_is_read_just_now_is_replaced_on_windows_when_its_reader_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses with PermissionError; here os.replace does so until a reader is gone."""
    real, readers = os.replace, [threading.Event()]

    def replace(source: Any, target: Any) -> None:
        if not readers[0].is_set():
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "a.json", "1")  # not Windows: said at once
    monkeypatch.setattr(files, "is_windows", lambda: True)
    threading.Timer(0.3, readers[0].set).start()
    write_whole(tmp_path / "a.json", "2\n")
    assert (tmp_path / "a.json").read_bytes() == b"2\n" and len(list(tmp_path.iterdir())) == 1
    readers[0] = threading.Event()
    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "a.json", "3")
    assert 0.2 <= time.monotonic() - began < 5 and (tmp_path / "a.json").read_bytes() == b"2\n"


@pytest.mark.parametrize("has_flag", [True, False])
def test_nothing_is_appended_through_a_symlink(has_flag: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CAREFUL", files._CAREFUL if has_flag else 0)
    victim = tmp_path / "victim"
    victim.write_text("mine\n", encoding="utf-8")
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(OSError) as told:
        EventLog(tmp_path / "events.jsonl").append("note", text="theirs")
    assert told.value.errno == errno.ELOOP and victim.read_text(encoding="utf-8") == "mine\n"


def test_a_lock_is_seen_held_and_free_with_and_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = filelock.FileLock(tmp_path / "lock")
    assert not locks.is_held(tmp_path / "lock")
    with lock:
        assert files.is_locked(tmp_path / "lock") and locks.is_held(tmp_path / "lock")
        monkeypatch.setattr(files, "fcntl", None)
        assert files.is_locked(tmp_path / "lock") is None and locks.is_held(tmp_path / "lock")
    assert not locks.is_held(tmp_path / "lock")


def test_modes_are_set_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.touch(0o644)
    files.set_mode(file, 0o600)
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(files, "is_windows", lambda: True)
    files.set_mode(file, 0o444)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "name",
    ["con", "NUL", "aux.txt", "Com1", "lpt9.tar.gz", "COM¹", "prn ", "run.", "run ", "a:b", "what?", "a\tb", "CONIN$"],
)
def test_names_that_windows_cannot_have_are_known(name: str) -> None:
    assert files.why_not_a_name(name).startswith("Windows ")


@pytest.mark.parametrize("name", ["console", "com", "com10", "nully.txt", "a.b", "run-1", "x.con", "lpt"])
def test_names_that_only_look_like_them_are_allowed(name: str) -> None:
    assert not files.why_not_a_name(name)


@pytest.mark.parametrize(
    ("name", "why"), [("nul", "for a device"), ("Aux.v2", "for a device"), ("run.", "a dot or a space")]
)
def test_a_run_gets_no_name_that_windows_cannot_have(name: str, why: str) -> None:
    """Also on Linux: runs lie on Windows' disks in WSL, and are copied."""
    with pytest.raises(UserError, match=f"name: .*{why}.*choose another"):
        make({"name": name})


def test_a_run_is_found_only_by_its_own_spelling(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a folder answers to `ONE` and `one.` as well, two handles of one run would not know each other's trainer."""
    run = store.create(make({"name": "one"}))
    real = Path.exists
    # as on a disk that does not tell upper from lower case
    monkeypatch.setattr(Path, "exists", lambda self: real(Path(str(self).replace("/ONE/", "/one/"))))
    assert (store.root / "ONE" / "run.json").exists() and store.get("one").path == run.path
    with pytest.raises(UserError, match="no run 'ONE'"):
        store.get("ONE")


def test_a_path_too_long_for_windows_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / ("x" * 100) / ("y" * 100))
    monkeypatch.setattr(files, "is_windows", lambda: True)
    with pytest.raises(UserError, match=r"too long for Windows \(\d+ characters, 179 at most\)"):
        store.create(make({"name": "one"}))
    assert not (store.root / "one").exists()
    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE=0,
        OpenKey=lambda root, path: contextlib.nullcontext(),
        QueryValueEx=lambda key, name: (int(name == "LongPathsEnabled"), 4),
    )
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert store.create(make({"name": "one"})).path.is_dir()


def test_several_processes_are_refused_on_windows_with_the_way_out(windows: None) -> None:
    with pytest.raises(UserError, match="WSL2, or set num_processes to 1"):
        several.check(make({"num_processes": 2}))


def test_children_speak_utf8_and_on_windows_read_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.child_environment()["PYTHONIOENCODING"].startswith("utf-8")
    monkeypatch.setattr(console, "is_windows", lambda: True)
    assert launch.child_environment()["PYTHONUTF8"] == "1"


@pytest.mark.parametrize("verb", [["--headless-queue"], ["--headless-train", "--config", "ж.yaml"]])
def test_a_console_without_the_sign_ends_nothing(verb: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "app.py", *verb, "--adapters-dir", str(tmp_path / "каталог")],
        capture_output=True,
        cwd=ROOT,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
    )
    said = (done.stdout + done.stderr).decode("cp1252")
    assert ("Traceback" not in said and "\\u0436" in said) or "\\u043a\\u0430" in said
    assert done.returncode == (2 if "--config" in verb else 0)


def test_what_goes_into_a_file_is_utf8_on_windows_and_json_is_json_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = open(tmp_path / "out", "w", encoding="cp1252")  # noqa: SIM115  the stream is what is tested
    monkeypatch.setattr(sys, "stdout", narrow)
    assert not console.shows_everything()
    console.prepare()
    print("→ 1", flush=True)
    monkeypatch.setattr(console, "is_windows", lambda: True)
    console.prepare()
    assert console.shows_everything()
    print("→ 2", flush=True)
    narrow.close()
    assert (tmp_path / "out").read_bytes() == "\\u2192 1\n→ 2\n".encode()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's growth")
def test_a_bound_on_growth_holds() -> None:
    code = (
        "from qlora_gui.system import processes\nassert processes.limit_growth(2**27)\n"
        "try: bytearray(2**28)\nexcept MemoryError: print('held')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "held\n", done.stderr


def test_growth_is_not_bounded_where_the_size_is_not_told(mac: None) -> None:
    assert not processes.limit_growth(2**40)


def test_a_process_that_computes_too_long_is_ended_and_known_by_it() -> None:
    code = "from qlora_gui.system import signals\nsignals.limit_computing(0.2)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert signals.computed_too_long(done.returncode)
    assert not signals.computed_too_long(0) and not signals.computed_too_long(1) and not signals.computed_too_long(None)


def test_without_timers_nothing_is_looked_at_and_nothing_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    with signals.regularly(0.02, lambda: looked.append(1)):
        time.sleep(0.3)
    assert looked
    looked.clear()
    monkeypatch.delattr(signal, "setitimer")
    monkeypatch.delattr(signal, "SIGPROF")
    with signals.regularly(0.02, lambda: looked.append(1)):
        time.sleep(0.1)
    signals.limit_computing(0.01)
    assert not looked and not signals.computed_too_long(0)


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_whose_file_it_is_is_asked_where_the_system_tells(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.touch()
    file.chmod(mode)
    assert files.is_mine_alone(file.stat()) == (mode == 0o600)
    monkeypatch.delattr(os, "getuid")
    assert files.is_mine_alone(file.stat())


def test_the_libraries_of_a_process_are_known_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    assert any("python" in Path(file).name or ".so" in file for file in processes.mapped_files())
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace())  # as on macOS, where psutil has no memory_maps
    assert processes.mapped_files() == []


@pytest.mark.parametrize("as_elsewhere", [False, True])
def test_a_file_has_its_bytes(as_elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Linux really on the disk; where the system has no such call, as long as it should be."""
    if as_elsewhere:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    for size, length in ((1 << 20, 1 << 20), (0, 1)):
        with (tmp_path / "file").open("wb") as body:
            files.allocate(body, size)
        info = (tmp_path / "file").stat()
        assert info.st_size == length and (as_elsewhere or 512 * info.st_blocks >= size)
