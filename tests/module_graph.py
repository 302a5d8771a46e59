"""Every module of the package and what it imports."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, set[str]]:
    """Every module of the package and the absolute names it imports, also inside functions."""
    found = {}
    for path in (ROOT / "qlora_gui").rglob("*.py"):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} uses a relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[module] = names
    return found


MODULES = modules()


def inner(names: set[str]) -> set[str]:
    """The modules of this package among imported names; `from a.b import c` names a.b unless a.b.c is a module."""
    ours = set()
    for name in names:
        if name == "qlora_gui" or name.startswith("qlora_gui."):
            ours.add(name if name in MODULES else name.rpartition(".")[0])
    return ours
