"""The command line: subcommands with flags of their own, and the `--headless-x` flags, which do the same as ever."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_gui.cli import flags, main
from qlora_gui.errors import UserError

ROOT = Path(__file__).parents[2]


def words_of(verb: str) -> list[str]:
    """Some flags of a verb."""
    adapters = ["--adapters", "a", "b", "--base", "c", "--out", "o.json", "--max-new-tokens", "9", "--revision", "r"]
    run = ["--rank", "4", "--no-double-quant", "--config", "x.yaml"]
    return {
        "train": [*run, "--resume", "r", "--answers", "1", "--json", "--queue"],
        "sweep": [*run, "--no-wait", "--memory", "8GB"],
        "fit": [*run, "--memory", "8GB", "--way", "stock", "--simulate", "--json"],
        "compare": [*adapters, "--prompts", "p", "--sample", "--top-p", "0.5", "--seed", "3", "--thinking", "on"],
        "evaluate": [*adapters, "--data", "d", "--rows", "7", "--skip-bad-rows", "--dataset-split", "test"],
        "report": ["one", "two", "--out", "o.md"],
        "cache": ["--clear"],
        "check": ["--json"],
    }.get(verb, [])


@pytest.mark.parametrize("verb", [verb for verb in flags.VERBS if verb not in ("preview", "serve")])
def test_a_subcommand_is_what_its_headless_flag_was(verb: str) -> None:
    words = ["--adapters-dir", "elsewhere", *words_of(verb)]
    if verb == "report":
        words = ["one", "two", "--out", "o.md", "--adapters-dir", "elsewhere"]
    new, old = vars(flags.parse([verb, *words])), vars(flags.parse([f"--headless-{verb}", *words]))
    assert new.pop("called") == verb and old.pop("called") == f"--headless-{verb}"
    assert new == old
    before = ["--adapters-dir", "elsewhere", verb, *words_of(verb)]
    assert vars(flags.parse(before)) | {"called": ""} == new | {"called": ""}


def test_no_command_is_the_page() -> None:
    assert flags.parse([]).verb == flags.parse(["--port", "8000"]).verb == ""
    assert flags.parse(["--adapters-dir", "train"]).verb == "", "a folder of that name"
    assert flags.parse(["--headless-train", "--name", "fit"]).verb == "train", "a run of that name"


@pytest.mark.parametrize("verb", flags.VERBS)
def test_each_help_is_of_its_own_flags(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and flags.VERBS[verb].about[1:] in " ".join(shown.split())
    for word in words_of(verb):
        assert not word.startswith("--") or word.removeprefix("--no-") in shown or word in shown
    assert ("--learning-rate" in shown) == (verb in ("train", "sweep", "fit", "preview"))
    assert "--share" not in shown


def test_the_short_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {verb} " in shown for verb in flags.VERBS) and "--share" in shown
    assert "--learning-rate" not in shown and len(shown.splitlines()) < 60


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "There is no command trian: did you mean train?"),
        (["something"], "There is no command something: see "),
        (["train", "--rnak", "8"], "There is no flag --rnak: did you mean --rank?"),
        (["cache", "--rank", "8"], "There is no flag --rank: see "),
        (["export", "otter"], "'otter' is given to no flag: see "),
        (["compare", "--adapters", "a"], "compare needs --prompts: see "),
        (["--headless-compare", "--adapters", "a"], "--headless-compare needs --prompts: see "),
        (["--rank", "8"], "--rank belongs to a headless verb"),
        (["--clear"], "--clear deletes what --headless-cache shows: give both."),
        (["preview", "--rows", "0"], "--rows is 0: give a number from 1 to 2,000."),
    ],
)
def test_what_is_wrong_is_a_sentence(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(words) == 2
    assert capsys.readouterr().err.startswith(told)


def test_exit_codes_and_output_are_those_of_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--preset", "experiment-2", "--memory", "6GB", "--json", "--adapters-dir", str(tmp_path)]
    codes = main.main(["fit", *asked]), main.main(["--headless-fit", *asked])
    told = capsys.readouterr().out.splitlines()
    new, old = "\n".join(told[: len(told) // 2]), "\n".join(told[len(told) // 2 :])
    assert codes == (3, 3) and json.loads(new)["verdict"] == json.loads(old)["verdict"] == "does not fit"
    assert main.main(["cache"]) == main.main(["--headless-cache"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[: len(told) // 2] == told[len(told) // 2 :] and told


def test_a_preview_says_what_is_learned_and_what_is_not(llama: Path, tmp_path: Path) -> None:
    def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "app.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)

    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "Two and two?", "completion": "It is \u2026 four."})
        + "\n{}\n"
        + json.dumps({"prompt": "x " * 400, "completion": "Never reached."})
        + "\n"
    )
    words = ["--base-model", str(llama), "--dataset", "rows.jsonl", "--max-length", "64", "--rows", "3"]
    told = run(tmp_path, "preview", *words)
    assert told.returncode == 0, told.stderr
    assert "\u27eaIt is \u2026 four." in told.stdout and "1 row cannot be used" in told.stdout
    answer = json.loads(run(tmp_path, "preview", *words, "--json").stdout)
    first = answer["rows"][0]["pieces"]
    assert [learned for _, learned in first] == [False, True] and first[1][0].startswith("It is \u2026 four.")
    assert answer["seen"]["skipped"] == 1 and answer["dropped_rows"][0]["row"] == 3
    failed = run(tmp_path, "preview", "--dataset", "nowhere.jsonl")
    assert failed.returncode == 2 and "nowhere.jsonl" in failed.stderr


def test_the_flags_of_a_sentence_are_those_that_there_are() -> None:
    with pytest.raises(UserError, match="expected one argument"):
        flags.parse(["fit", "--memory"])
