"""The README says what is: its generated parts are up to date, its commands are the ones CI runs."""

import re
from pathlib import Path

from tests import on_null_card, readme

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


def test_the_plan_holds_on_emulated_cards_and_its_page_says_so() -> None:
    """Every card and base of benchmarks/plan_on_null_card.py, and the README's experiments in both ways."""
    assert on_null_card.filled(on_null_card.PAGE.read_text()) == on_null_card.PAGE.read_text(), (
        "run: python -m tests.readme"
    )
    cells = [cell for cell in on_null_card.ours() if "experiment" not in cell]
    assert len({(cell["card"], cell["base"]) for cell in cells}) == 15 and len(cells) == 360
    assert len(on_null_card.experiments()) == 12
    told = on_null_card.summary(on_null_card.found()["cells"])
    assert told["median"] < 0.02 and told["worst"] < 0.05 and told["died_though_said_to_fit"] == 0
