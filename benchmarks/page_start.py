"""How long until the page answers, against an empty Gradio page: `python benchmarks/page_start.py`.

Both are started as processes in alternating order; a time is from the start of the process to the first
answer with status 200. Prints medians and their ratio, and writes benchmarks/results/page_start.json.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from qlora_gui.ui import key  # noqa: E402

EMPTY = """
import sys, gradio
with gradio.Blocks() as page:
    gradio.Markdown("empty")
page.launch(server_port=int(sys.argv[1]), quiet=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def seconds_until_up(command: list[str], port: int, folder: str) -> float:
    """Start a server and time it until its page answers; then end it."""
    env = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    began = time.perf_counter()
    quiet = subprocess.DEVNULL
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/", headers={"Authorization": f"Bearer {key.load_or_create().token}"}
    )
    server = subprocess.Popen([*command, str(port)], cwd=folder, env=env, stdout=quiet, stderr=quiet)
    try:
        while True:
            try:
                with urllib.request.urlopen(asked, timeout=5) as reply:
                    if reply.status == 200:
                        return time.perf_counter() - began
            except OSError:
                if server.poll() is not None or time.perf_counter() - began > 120:
                    raise SystemExit(f"the server did not come up: {command}") from None
                time.sleep(0.02)
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="measured starts of each (default: 7)")
    runs = parser.parse_args().runs
    kinds = {
        "empty": [sys.executable, "-c", EMPTY],
        "qlora_gui": [sys.executable, str(ROOT / "app.py"), "--port"],
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs + 1):
            for kind in sorted(kinds, reverse=number % 2 == 1):
                took = seconds_until_up(kinds[kind], free_port(), folder)
                if number:  # the first start of each warms the disk's cache
                    times[kind].append(took)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    ratio = medians["qlora_gui"] / medians["empty"]
    print(f"{'page':12} {'median s':>9} {'min s':>7} {'max s':>7}")
    for kind, values in times.items():
        print(f"{kind:12} {medians[kind]:9.2f} {min(values):7.2f} {max(values):7.2f}")
    print(f"ratio {ratio:.2f}")
    result = {
        "benchmark": "page_start",
        "seconds": times,
        "median_seconds": medians,
        "ratio": ratio,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "gradio": metadata.version("gradio")},
    }
    out = ROOT / "benchmarks" / "results" / "page_start.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
