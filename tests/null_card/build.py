"""Compile the null runtime, once for each version of its sources, into the cache folder."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from qlora_gui import hub

SOURCES = Path(__file__).parent / "c"
# library -> the name that torch loads it by
LIBRARIES = {
    "cudart": "libcudart.so.13",
    "cuda": "libcuda.so.1",
    "cublas": "libcublas.so.13",
    "cublasLt": "libcublasLt.so.13",
}


def folder() -> Path:
    """Where the CUDA environment and the compiled runtimes are; QLORA_GUI_NULL_CARD_CACHE moves it."""
    moved = os.environ.get("QLORA_GUI_NULL_CARD_CACHE")
    return Path(moved) if moved else hub.cache_dir() / "null_card"


def built(headers: Path) -> Path:
    """The folder of the compiled runtime. Raises RuntimeError, with the compiler's words, where it cannot be built.

    `headers` is the include folder of CUDA 13; the wheel nvidia-cuda-runtime, which torch brings, has all of them.
    """
    digest = hashlib.sha256(str(headers).encode())
    for file in sorted(SOURCES.rglob("*")):
        digest.update(file.read_bytes() if file.is_file() else b"")
    done = folder() / f"runtime-{digest.hexdigest()[:12]}"
    if not done.is_dir():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent) as aside:
            made = Path(aside) / "made"
            made.mkdir()
            for library, name in LIBRARIES.items():
                _compile(library, name, made, headers)
            shutil.copy(SOURCES / "nvidia-smi", made)
            try:
                made.rename(done)
            except OSError:
                if not done.is_dir():  # else another process was as fast
                    raise
    return done


def _compile(library: str, name: str, into: Path, headers: Path) -> None:
    """One shared library: its source, and its functions that only succeed; torch asks for versioned symbols."""
    idle = (SOURCES / f"{library}.idle").read_text().split()
    source, versions = into / f"{library}.c", into / f"{library}.map"
    functions = "\n".join(f"int {function}() {{ return 0; }}" for function in idle)
    source.write_text((SOURCES / f"{library}.c").read_text() + functions + "\n")
    versions.write_text(f"{name} {{ global: *; }};\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-I{SOURCES}", f"-I{headers}", str(source)]
    command += [f"-Wl,-soname,{name}", "-o", str(into / name), "-lpthread", "-ldl"]
    if library != "cuda":
        command.append(f"-Wl,--version-script={versions}")
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError("The null card is compiled by gcc, which is not installed.") from None
    if done.returncode:
        raise RuntimeError(f"The null card's {name} cannot be compiled:\n{done.stderr}")
