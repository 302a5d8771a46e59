"""Write requirements.lock: every package that requirements.txt brings, as installed here: `python -m tests.lock`."""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
_HEAD = """\
# Every package of the environment that the tests ran in, made by `python -m tests.lock`; requirements.txt says what for.
# torch names the CUDA packages of its own build itself, each with its version.
"""


def requirements(file: Path) -> list[str]:
    """The requirements of a file, without comments and options."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def locked() -> str:
    """The text of the lock."""
    versions: dict[str, str] = {}
    left = [Requirement(line) for line in requirements(ROOT / "requirements.txt")]
    while left:
        wanted = left.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if name in versions:
            continue
        found = metadata.distribution(name)
        versions[name] = found.version.partition("+")[0]  # pip takes a build of torch from where it is told to look
        for line in found.requires or []:
            more = Requirement(line)
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                left.append(more)
    return _HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


if __name__ == "__main__":
    LOCK.write_text(locked(), encoding="utf-8")
