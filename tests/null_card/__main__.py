"""`python -m tests.null_card [pytest's arguments]`: make the environment of the null card's tests, once, and run them.

The environment has torch's CUDA build, about 5.5 GB, and lies in the program's cache folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.null_card import build
from tests.null_card.host import ROOT, VARIABLE

_REQUIREMENTS = ROOT / "requirements-dev.txt"


def environment() -> Path:
    """The python of the environment, which is made anew where the requirements have changed.

    Installed by uv from PyPI: pip may be set up here for another build of torch. Raises CalledProcessError.
    """
    wanted = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "requirements-dev.txt"))
    digest = hashlib.sha256(wanted + sys.version.encode()).hexdigest()
    folder = build.folder() / "environment"
    python, made_from = folder / "bin" / "python", folder / "made_from"
    if not made_from.is_file() or made_from.read_text() != digest:
        print(f"Making the environment of the null card in {folder}, about 5.5 GB", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "uv"], check=True)
        install = [str(python), "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
        subprocess.run([*install, "--default-index", "https://pypi.org/simple", "-r", str(_REQUIREMENTS)], check=True)
        made_from.write_text(digest)
    return python


def main() -> int:
    # Two at a time as in .ci/run: what is short of memory here is the card, which every process has for itself.
    command = [sys.executable, "-m", "pytest", "tests/null_card", "-m", "null_card", "-n", "2", "--durations=10"]
    return subprocess.run(
        [*command, *sys.argv[1:]], cwd=ROOT, env=os.environ | {VARIABLE: str(environment())}
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
