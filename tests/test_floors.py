"""The house keeps its floors: imports go down, and the page's side never imports the model stack."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.module_graph import MODULES, ROOT, inner

# From the ground up; a module belongs to the longest matching prefix.
FLOORS = [
    {"errors"},
    {"families", "system"},
    {"formatting", "hub", "nvidia", "optimizers", "plain_files", "settings_yaml", "step_rules"},
    {"references"},
    {"files", "locks", "cache", "torch_view", "config"},
    {"hardware"},
    {"data"},
    {"runs", "inference.sampling"},
    {"simulation.client", "inference.protocol"},
    {"memory"},
    {"models"},
    {"simulation"},
    {"training", "inference"},
    {"inference.client"},
    {"evaluation", "check.lines", "serving"},
    {"export.hub_target"},
    {"export.job", "export.push_job"},
    {"export"},
    {"export.run"},
    {"diagnostics", "preferences", "ui.rendering"},
    {"check", "check.machine", "report"},
    {"check.client"},
    {"cli", "ui"},
    {"cli.main"},
]
FRONT = {
    "errors",
    "families",
    "system",
    "formatting",
    "hub",
    "nvidia",
    "optimizers",
    "plain_files",
    "references",
    "settings_yaml",
    "step_rules",
    "files",
    "locks",
    "cache",
    "torch_view",
    "config",
    "hardware",
    "runs",
    "inference.sampling",
    "inference.protocol",
    "simulation.client",
    "memory",
    "inference.client",
    "evaluation",
    "serving",
    "export.hub_target",
    "export.job",
    "export.push_job",
    "diagnostics",
    "preferences",
    "report",
    "ui.rendering",
    "check.lines",
    "check.machine",
    "check.client",
    "ui",
    "cli",
    "cli.main",
}
MODEL_STACK = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors"}


def place(module: str) -> str:
    """`qlora_gui.runs.store` -> `runs`: the entry of FLOORS it belongs to."""
    name = module.removeprefix("qlora_gui.")
    entries = sorted((entry for floor in FLOORS for entry in floor), key=len, reverse=True)
    return next(entry for entry in entries if name == entry or name.startswith(entry + "."))


def floor(module: str) -> int:
    return next(number for number, entries in enumerate(FLOORS) if place(module) in entries)


def test_imports_go_down_and_nothing_imports_the_root() -> None:
    wrong = []
    for module, names in MODULES.items():
        if module == "qlora_gui":
            continue
        for other in inner(names):
            if other == "qlora_gui":
                wrong.append(f"{module} imports the package root")
            elif place(other) != place(module) and floor(other) >= floor(module):
                wrong.append(f"{module} imports {other}, which is not below it")
    assert not wrong


def test_there_are_no_circles() -> None:
    graph = {module: inner(names) - {module} for module, names in MODULES.items()}
    while leaves := {module for module, others in graph.items() if not others & graph.keys()}:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_front_and_back_keep_apart() -> None:
    wrong = []
    for module, names in MODULES.items():
        if module == "qlora_gui":
            continue
        packages = {name.partition(".")[0] for name in names}
        if place(module) in FRONT | {"data"} and module != "qlora_gui.data.collate" and packages & MODEL_STACK:
            wrong.append(f"{module} imports {packages & MODEL_STACK}")
        if place(module) in FRONT:
            back = {
                other
                for other in inner(names)
                if place(other) in {"models", "training", "inference", "simulation", "check", "export"}
            }
            back |= inner(names) & {"qlora_gui.data.collate"}
            back -= {"qlora_gui.inference"}
            wrong += [f"{module} imports {other}" for other in back]
        elif "gradio" in packages:
            wrong.append(f"{module} imports gradio")
    assert not wrong


def test_functions_stay_short() -> None:
    long = [
        f"{path.name}: {node.name} has {length} lines"
        for path in (ROOT / "qlora_gui").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long


def test_files_stay_small() -> None:
    long = {
        path.name: count
        for path in (ROOT / "qlora_gui").rglob("*.py")
        if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_the_pages_process_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from qlora_gui.cli import main, train\n"
        "from qlora_gui.runs.store import RunStore\n"
        "from qlora_gui.ui.app import build_app\n"
        f"build_app(RunStore({str(tmp_path)!r}))\n"
        f"print(sorted({MODEL_STACK!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_no_test_module_imports_another() -> None:
    """What several need stands in modules that are no tests: factories, adapters, small_models, commands, ..."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if re.match(r"tests(\.\w+)*\.test_", name)
    ]
    assert not wrong


def test_tests_stand_in_folders_named_like_the_packages() -> None:
    packages = {path.name for path in (ROOT / "qlora_gui").iterdir() if (path / "__init__.py").exists()}
    others = {"browser", "colab_like", "faults", "matrix", "null_card", "security", "windows_like"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders - others <= packages
