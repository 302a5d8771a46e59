"""The README says what is: its generated parts are up to date, its commands are the ones CI runs."""

import re
from pathlib import Path

from tests import readme

ROOT = Path(__file__).parents[1]
TEXT = readme.README.read_text()


def test_the_generated_parts_are_up_to_date() -> None:
    assert readme.filled(TEXT) == TEXT, "run: python -m tests.readme"


def test_the_first_screen_has_exactly_two_commands() -> None:
    first_screen = TEXT.split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", first_screen, re.S)
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert blocks[0].rstrip().endswith("app.py") and blocks[1].rstrip().endswith("pytest")


def test_every_picture_and_file_it_names_is_there() -> None:
    for name in re.findall(r"!\[.*?\]\((.*?)\)", TEXT) + re.findall(r"\| `([\w./-]+)` \|", readme.file_tree()):
        assert (ROOT / name).exists(), name


def test_requirements_are_bounded() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        wanted = line.partition("#")[0].strip()
        assert not wanted or "==" in wanted or ("<" in wanted and ">=" in wanted), line
