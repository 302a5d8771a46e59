"""README.md and docs/ say what is: generated parts are up to date, links lead somewhere, commands are the ones CI runs."""

import re
import shlex
from pathlib import Path

import pytest

from qlora_gui.cli import flags
from tests import on_null_card, readme

ROOT = Path(__file__).parents[1]
TEXT = readme.README.read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
GUIDES = [page for page in PAGES if page.name != "report.md"]  # a report's texts are a model's


@pytest.mark.parametrize("page", sorted({page for page, _ in readme.PARTS.values()}), ids=lambda page: page.name)
def test_the_generated_parts_are_up_to_date(page: Path) -> None:
    assert readme.filled(page) == page.read_text(encoding="utf-8"), "run: python -m tests.readme"


def test_every_generated_part_stands_in_its_page_alone() -> None:
    for part, (where, _) in readme.PARTS.items():
        assert [page for page in PAGES if f"<!-- /{part} -->" in page.read_text(encoding="utf-8")] == [where]


def test_the_first_page_is_short() -> None:
    assert TEXT.count("\n") <= 200


def test_the_first_screen_has_exactly_two_commands() -> None:
    first_screen = TEXT.split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", first_screen, re.S)
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert blocks[0].rstrip().endswith("app.py") and blocks[1].rstrip().endswith("pytest")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_to_a_file(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_picture_and_file_it_names_is_there() -> None:
    for name in re.findall(r"!\[.*?\]\((.*?)\)", TEXT) + re.findall(r"\| `([\w./-]+)` \|", readme.file_tree()):
        assert (ROOT / name).exists(), name


def test_the_tree_names_every_folder_of_the_program() -> None:
    tree = TEXT.split("## Folders")[1].split("```")[1]
    folders = {path.name for path in (ROOT / "qlora_gui").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", tree, re.M)) == folders


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_command_line_is_one_that_the_program_takes(page: Path) -> None:
    for block in re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "qlora-gui" in words[:2]:
                flags.parse(words[words.index("qlora-gui") + 1 :])


def test_every_command_has_a_section() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), re.M)
    assert sections == list(flags.VERBS)


def test_the_ten_minute_changes_name_files_and_names_that_exist() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Ten-minute changes")[1].split("\n## ")[0]
    changes = section.split("\n**")[1:]
    assert len(changes) == 6
    for change in changes:
        named = set(re.findall(r"`([\w./]+)`", change)) - {"tab.py"}
        paths = {name for name in named if "/" in name}
        assert paths and [name for name in paths if not (ROOT / name).exists()] == []
        text = "".join((ROOT / name).read_text(encoding="utf-8") for name in paths if (ROOT / name).is_file())
        assert [name for name in named - paths if name not in text] == []


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
    accuracy = on_null_card.summary(on_null_card.found()["cells"])
    assert accuracy["median"] < 0.02 and accuracy["worst"] < 0.05 and accuracy["died_though_said_to_fit"] == 0
