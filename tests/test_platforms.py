"""Dockerfile, compose file and the lines of docs/platforms.md, read: they are not built here."""

import fnmatch
import re
import subprocess
from pathlib import Path

import yaml

from qlora_gui.cli import flags

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLATFORMS = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) in order, without comments, with continued lines joined."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, rest.strip()) for line in lines.splitlines() if line.strip() for word, _, rest in [line.partition(" ")]
    ]


def test_the_image_is_pinned_and_nothing_comes_from_an_address() -> None:
    (base,) = [rest for word, rest in instructions() if word == "FROM"]
    assert re.fullmatch(r"python:3\.(10|11|12|13)\.\d+-slim-\w+", base)
    assert not [word for word, _ in instructions() if word == "ADD"] and "curl" not in TEXT and "wget" not in TEXT


def test_it_does_not_run_as_root_and_keeps_its_work_outside() -> None:
    order = [word for word, _ in instructions()]
    (user,) = [rest for word, rest in instructions() if word == "USER"]
    assert user == "1000" and f"--uid {user}" in TEXT
    assert order.index("USER") < order.index("ENTRYPOINT") and "RUN" not in order[order.index("USER") :]
    (volumes,) = [rest for word, rest in instructions() if word == "VOLUME"]
    assert set(yaml.safe_load(volumes)) == {"/data/adapters", "/data/cache"}
    environment = " ".join(rest for word, rest in instructions() if word == "ENV")
    assert "QLORA_GUI_CACHE=/data/cache" in environment and "HF_HOME=/data/cache/" in environment
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in environment  # utility brings nvidia-smi


def test_requirements_are_installed_before_the_code_is_copied() -> None:
    order = [f"{word} {rest}" for word, rest in instructions()]
    at = {
        name: next(i for i, line in enumerate(order) if name in line)
        for name in ("COPY requirements", "pip install", "COPY qlora")
    }
    assert at["COPY requirements"] < at["pip install"] < at["COPY qlora"]


def test_what_is_copied_passes_the_ignore_file_and_nothing_else_does() -> None:
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    read = subprocess.run(["git", "ls-files", "qlora_gui"], capture_output=True, encoding="utf-8", cwd=ROOT, check=True)
    dropped = [rule.removeprefix("**/") for rule in rules[1:] if not rule.startswith("!")]
    lost = [name for name in read.stdout.split() for rule in dropped if fnmatch.fnmatch(Path(name).name, rule)]
    assert lost == []


def test_its_command_is_one_that_the_program_takes_and_asks_for_a_login() -> None:
    words = [
        word
        for name in ("ENTRYPOINT", "CMD")
        for kind, rest in instructions()
        if kind == name
        for word in yaml.safe_load(rest)
    ]
    assert words[:2] == ["python", "app.py"]
    arguments = flags.headless().parse_args(words[2:])
    assert (arguments.host, arguments.port, str(arguments.adapters_dir)) == ("0.0.0.0", 7860, "/data/adapters")
    from qlora_gui.serving.address import Address

    assert Address(arguments.host).login() is not None


def test_the_compose_file_has_the_gpu_the_volumes_and_this_machine_alone() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["qlora-gui"]
    (gpu,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert gpu == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert service["ports"] == ["127.0.0.1:7860:7860"] and service["init"] is True and "privileged" not in service
    mounts = dict(volume.split(":", 1) for volume in service["volumes"])
    assert mounts == {"adapters": "/data/adapters", "cache": "/data/cache", "./data": "/data/files:ro"}
    assert set(compose["volumes"]) == {"adapters", "cache"}
    assert "docker compose up --build" in README and "docker compose up --build" in PLATFORMS


def test_the_line_for_older_drivers_is_of_the_torch_that_is_required() -> None:
    pinned = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)
    assert pinned
    for text in (README, PLATFORMS, (ROOT / "docs" / "colab.ipynb").read_text(encoding="utf-8")):
        named = re.findall(r"torch==\d[\d.]*\d", text)
        assert set(named) <= {pinned.group()} and "download.pytorch.org/whl/cu126" in text
