"""Run the attack tests and write what they tried into docs/security.md: `python -m tests.security.attacks [files]`.

An attack is a test marked `@pytest.mark.attack("what is attacked")`. Its tries are counted by the fixture `attempt`, or as
one a test where it does not use that. Given files, only their rows are made anew.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "security.md"
_PART = re.compile(r"(<!-- attacks:.*?-->\n).*?(<!-- /attacks -->)", re.S)
_ROW = re.compile(r"^\| (?P<attack>.+) \| (?P<tries>\d+) \| (?P<through>\d+) \| `(?P<file>.+)` \|$", re.M)
Key = tuple[str, str]  # test file and what is attacked


class Attempts:
    """`attempt(held, what)` counts a try; one that got through ends the test."""

    def __init__(self, item: pytest.Item):
        self._item = item

    def __call__(self, held: object, what: object = "") -> None:
        self._item.user_properties.append(("attempt", bool(held)))
        assert held, f"got through: {what}"


def mark(items: Iterable[pytest.Item]) -> None:
    """Leave on every attack what its row is called, for whoever reads the reports (also of another process)."""
    for item in items:
        if found := item.get_closest_marker("attack"):
            item.user_properties.append(("attack", found.args[0]))


@dataclass
class Row:
    """Tries of an attack, and how many of them got through."""

    tries: int = 0
    through: int = 0


class Count:
    """A pytest plugin: the rows of what was run, and what was not."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.missing: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        if "attack" not in told:
            return
        if report.skipped or (report.when != "call" and report.failed):
            self.missing.append(report.nodeid)
        if report.when != "call" or report.skipped:
            return
        tries = [held for name, held in report.user_properties if name == "attempt"] or [report.passed]
        row = self.rows.setdefault((report.nodeid.partition("::")[0], str(told["attack"])), Row())
        row.tries += len(tries)
        row.through += tries.count(False)
        if report.failed and False not in tries:
            self.missing.append(report.nodeid)  # broken, which proves nothing


def written(text: str) -> dict[Key, Row]:
    """The rows that the page holds."""
    return {
        (found["file"], found["attack"]): Row(int(found["tries"]), int(found["through"]))
        for found in _ROW.finditer(text)
    }


def filled(text: str, rows: dict[Key, Row]) -> str:
    """The page with these rows in its table, by file."""
    lines = ["| attack | tries | got through | by |", "|---|--:|--:|---|"]
    for (file, attack), row in sorted(rows.items()):
        lines.append(f"| {attack} | {row.tries} | {row.through} | `{file}` |")
    tries, through = (sum(getattr(row, name) for row in rows.values()) for name in ("tries", "through"))
    lines.append(f"| **all** | **{tries}** | **{through}** | |")
    return _PART.sub(lambda found: found.group(1) + "\n".join(lines) + "\n" + found.group(2), text)


def declared() -> set[Key]:
    """File and name of every attack that a test declares, read from the sources."""
    return {
        (path.relative_to(ROOT).as_posix(), attack)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for attack in _names(ast.parse(path.read_text()))
    }


def _names(tree: ast.Module) -> Iterator[str]:
    """The names of attacks in a test's source: texts, or what the module calls such a text."""
    called = {
        ast.unparse(node.targets[0]): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.attack":
            name = node.args[0]
            yield str(called[name.id] if isinstance(name, ast.Name) else ast.literal_eval(name))


def main(files: list[str]) -> int:
    """Run the attacks of these files, or all, and write their rows. Exit code 1 where one got through or was not run."""
    count = Count()
    pytest.main(["-q", "--slow", "-m", "attack", *files], plugins=[count])
    if count.missing:
        print("Not written, for these were skipped or are broken:", *count.missing, sep="\n  ")
        return 1
    text = TABLE.read_text()
    known = declared()
    kept = {key: row for key, row in written(text).items() if key in known and key[0] not in {k[0] for k in count.rows}}
    TABLE.write_text(filled(text, kept | count.rows))
    return int(any(row.through for row in count.rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
