"""How fast one epoch is trained, against other tools: `python benchmarks/train_speed.py [DATA]`.

One epoch over the first 128 rows on the 135M demo base, on the CPU: NF4 with double quant, LoRA rank 16 on all
linears, no checkpointing, 8 examples a step, loss on the assistant's tokens. Everybody gets the same conversations, and
every tool runs in a process of its own; its time is its training loop alone, without imports, loading and tokenizing.
Peak memory is what the process held resident during that loop, `cores` how many it kept busy: fewer than there are mean
that something else ran, too. The held-out loss after the epoch is measured for each by rivals/heldout.py on the next
100 rows.

A contestant is `tool` or `tool:dtype`. bf16 is the usual setting of all tools; where the processor has none of its own
everybody emulates it, about three times slower than fp32, and both are measured. fp32 is bf16 turned off, as far as the
tool goes along (TRL keeps its LoRA in bf16). auto, for ours: what it chooses by itself on this machine.

Prints a table; writes benchmarks/results/train_speed.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import hardware, versions  # noqa: E402
from rivals import ours, venvs  # noqa: E402

from qlora_gui.data import collate, load, tokenization  # noqa: E402
from qlora_gui.data.chat import Chat  # noqa: E402
from qlora_gui.models import base as bases  # noqa: E402
from qlora_gui.models import demo  # noqa: E402

RIVALS = ROOT / "benchmarks" / "rivals"
# The base's own default, said aloud: LLaMA-Factory's template has none, and all shall learn from the same tokens.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TOOLS = ("ours", "ours-packed", "trainer", "trl", "trl-packed", "llamafactory")
DTYPES = ("bf16", "fp32", "auto")
EXAMPLES_A_STEP = 8
TRAINED_ROWS, MEASURED_ROWS = 128, 100
SETTINGS = {"rank": 16, "alpha": 32, "learning_rate": 2e-4, "max_grad_norm": 1.0, "max_length": 512, "seed": 42}


def usual() -> list[str]:
    """Everybody in bf16; where the processor only emulates it, everybody in fp32 as well."""
    emulated = not any(hardware()["bf16"].values())
    return [f"{tool}:{dtype}" for dtype in (["bf16", "fp32"] if emulated else ["bf16"]) for tool in TOOLS]


@dataclass(frozen=True)
class Contestant:
    """One tool in one number format."""

    tool: str
    dtype: str

    @classmethod
    def of(cls, text: str) -> "Contestant":
        tool, _, dtype = text.partition(":")
        dtype = dtype or "bf16"
        if tool not in TOOLS or dtype not in DTYPES or (dtype == "auto" and not tool.startswith("ours")):
            raise argparse.ArgumentTypeError(f"'{text}': a tool is one of {', '.join(TOOLS)}, auto is for ours only")
        return cls(tool, dtype)

    @property
    def name(self) -> str:
        return f"{self.tool}:{self.dtype}"

    @property
    def packed(self) -> bool:
        return self.tool.endswith("-packed")


def prepare(data: Path, rows: int, measured: int, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """The job that is the same for all, with its rows tokenized once, and the encoded held-out rows."""
    base = demo.ensure()
    tokenizer = bases.load_tokenizer(base)
    examples = load.load(str(data)).train
    if len(examples) < rows + measured:
        raise SystemExit(f"{data} has {len(examples)} rows, and {rows + measured} are needed")
    for example in examples:
        example["messages"] = tokenization.with_system(example["messages"], SYSTEM)
    limit, chat = int(SETTINGS["max_length"]), Chat(tokenizer)
    trained, _ = tokenization.encode_all(examples[:rows], chat, limit)
    held_out, _ = tokenization.encode_all(examples[rows : rows + measured], chat, limit)
    conversations = [example["messages"] for example in examples[:rows]]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in conversations), encoding="utf-8")
    job = SETTINGS | {
        "base": str(base),
        "file": str(file),
        "conversations": conversations,
        "rows": collate.as_rows(trained),
    }
    return job, collate.as_rows(held_out)


def rows_a_step(job: dict[str, Any], packed: bool) -> int:
    """8 examples, or as many packed rows as hold about that many."""
    if not packed:
        return EXAMPLES_A_STEP
    length = sum(len(row["input_ids"]) for row in job["rows"]) / len(job["rows"])
    return max(1, round(EXAMPLES_A_STEP * length / job["max_length"]))


def train(contestant: Contestant, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One epoch. Gives seconds, peak_bytes, steps, dtype and the adapter's folder. Raises SystemExit on failure."""
    folder.mkdir(parents=True)
    packed = contestant.packed
    job = job | {"tool": contestant.tool.removesuffix("-packed"), "dtype": contestant.dtype, "packed": packed}
    job |= {"out": str(folder / "adapter"), "batch": rows_a_step(job, packed)}
    if job["tool"] == "ours":
        return ours.train(job, folder)
    Path(job["out"]).mkdir()
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    if job["tool"] == "llamafactory":
        _child(venvs.llamafactory(), "llamafactory_sft.py", folder)
    else:
        _child(venvs.trl() if job["tool"] == "trl" else Path(sys.executable), "stock.py", folder)
    measured = json.loads((Path(job["out"]) / "measured.json").read_text())
    return measured | {"dtype": contestant.dtype, "adapter": job["out"]}


def _child(python: Path, script: str, folder: Path) -> str:
    """Run one of rivals/*.py on folder/job.json; gives what it printed. Raises SystemExit with its last lines."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), str(RIVALS / script), str(folder / "job.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{script} in {python} failed:\n" + "\n".join(done.stderr.splitlines()[-30:]))
    return done.stdout


def held_out_losses(job: dict[str, Any], held_out: list[Any], adapters: list[str], folder: Path) -> dict[str, float]:
    folder.mkdir()
    body = {"base": job["base"], "rows": held_out, "adapters": adapters}
    (folder / "job.json").write_text(json.dumps(body), encoding="utf-8")
    return dict(json.loads(_child(Path(sys.executable), "heldout.py", folder).splitlines()[-1]))


def summary(contestants: list[Contestant], results: dict[str, list[dict[str, Any]]], rows: int) -> list[dict[str, Any]]:
    """A line a contestant: medians over the repeats."""
    lines = []
    for contestant in contestants:
        mine = results[contestant.name]
        seconds = statistics.median(one["seconds"] for one in mine)
        line = {
            "contestant": contestant.name,
            "dtype": mine[0]["dtype"],
            "steps": mine[0]["steps"],
            "seconds": seconds,
            "examples_per_second": rows / seconds,
            "cores": statistics.median(one["cores"] for one in mine),
            "peak_mib": statistics.median(one["peak_bytes"] for one in mine) / 2**20,
            "held_out_loss": statistics.median(one["held_out_loss"] for one in mine),
        }
        lines.append(line)
    return lines


def ratios(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each of ours: how many times as fast as each rival, TRL at its best of padded and packed."""
    rivals: dict[str, float] = {}
    for line in lines:
        tool, _, dtype = line["contestant"].partition(":")
        if not tool.startswith("ours"):
            name = f"{tool.removesuffix('-packed')}:{dtype}"
            rivals[name] = min(line["seconds"], rivals.get(name, float("inf")))
    mine = {line["contestant"]: line["seconds"] for line in lines if line["contestant"].startswith("ours")}
    return {own: {name: seconds / took for name, seconds in rivals.items()} for own, took in mine.items()}


def show(lines: list[dict[str, Any]], faster: dict[str, dict[str, float]], base_loss: float) -> None:
    best = min(line["held_out_loss"] for line in lines)
    print(
        f"\n{'contestant':18} {'dtype':9} {'steps':>5} {'s':>7} {'ex/s':>6} {'cores':>5} {'peak MiB':>9} {'held-out':>9} {'vs best':>8}"
    )
    for line in lines:
        print(
            f"{line['contestant']:18} {line['dtype']:9} {line['steps']:5} {line['seconds']:7.2f} "
            f"{line['examples_per_second']:6.2f} {line['cores']:5.2f} {line['peak_mib']:9.0f} {line['held_out_loss']:9.4f} "
            f"{100 * (line['held_out_loss'] / best - 1):+7.2f}%"
        )
    print(f"held-out loss of the base: {base_loss:.4f}")
    for own, against in faster.items():
        if against:
            print(f"{own} is " + ", ".join(f"{ratio:.2f}x {name}" for name, ratio in against.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "instructions.json")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each contestant (default: 3)")
    parser.add_argument("--rows", type=int, default=TRAINED_ROWS, help=f"rows trained on (default: {TRAINED_ROWS})")
    parser.add_argument(
        "--measured", type=int, default=MEASURED_ROWS, help=f"rows measured on (default: {MEASURED_ROWS})"
    )
    parser.add_argument(
        "--contestants", nargs="+", type=Contestant.of, metavar="TOOL[:DTYPE]", help=f"default: {' '.join(usual())}"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "train_speed.json")
    given = parser.parse_args()
    contestants = given.contestants or [Contestant.of(text) for text in usual()]
    results: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in contestants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job, held_out = prepare(given.data, given.rows, given.measured, folder)
        for repeat in range(given.repeats):
            for contestant in contestants if repeat % 2 == 0 else contestants[::-1]:
                one = train(contestant, job, folder / f"{contestant.name.replace(':', '-')}-{repeat}")
                results[contestant.name].append(one)
                print(f"{contestant.name:18} {one['seconds']:7.2f} s {one['peak_bytes'] / 2**20:7.0f} MiB", flush=True)
        runs = [one for several in results.values() for one in several]
        losses = held_out_losses(job, held_out, [one["adapter"] for one in runs], folder / "heldout")
        for one in runs:
            one["held_out_loss"] = losses[one.pop("adapter")]
    lines = summary(contestants, results, given.rows)
    faster = ratios(lines)
    show(lines, faster, losses["base"])
    result = {
        "benchmark": "train_speed",
        "rows": given.rows,
        "tokens": sum(len(row["input_ids"]) for row in job["rows"]),
        "settings": SETTINGS | {"examples_a_step": EXAMPLES_A_STEP},
        "base_held_out_loss": losses["base"],
        "medians": lines,
        "times_as_fast": faster,
        "runs": results,
        "machine": hardware(),
        "versions": versions() | {"rivals": [venvs.TRL, venvs.LLAMAFACTORY]},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
