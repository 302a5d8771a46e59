"""Quantized bases are kept: the same model to the bit, damage is noticed, two processes do not disturb each other."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_gui import cache as kept
from qlora_gui.cli import main
from qlora_gui.errors import UserError
from qlora_gui.models import base as bases
from qlora_gui.models import demo, quantized_cache

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 200, 31, 77, 640]])
LOAD = (
    "import sys, torch; from qlora_gui.models import base; "
    "m = base.load_model(sys.argv[1], 'nf4', True, torch.device('cpu'), torch.float32)"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantized"


@pytest.fixture(scope="session")
def demo_base() -> Path:
    """Found before `cache` moves the place it is found in."""
    return demo.ensure()


@pytest.fixture(params=["bloom", "llama"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def load(
    path: Path, dtype: torch.dtype = torch.float32, quant_type: str = "nf4", double: bool = True
) -> tuple[Any, list[str]]:
    """A model, and what was said while it was loaded."""
    said: list[str] = []
    return bases.load_model(str(path), quant_type, double, CPU, dtype, said.append), said


def plain(path: Path, dtype: torch.dtype, quant_type: str = "nf4", double: bool = True) -> Any:
    """transformers alone, quantizing on load."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=quantization, dtype=dtype, device_map={"": CPU}
    )
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def stored_in_bf16(base: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def assert_is_plain(path: Path, *settings: Any) -> None:
    """The first load and the second give what transformers gives, to the bit."""
    wanted = plain(path, *settings)
    for model in (load(path, *settings)[0], load(path, *settings)[0]):
        assert torch.equal(logits(model), logits(wanted))
        ours, theirs = model.state_dict(), wanted.state_dict()
        assert {name: part.dtype for name, part in ours.items()} == {name: part.dtype for name, part in theirs.items()}
        assert model.generation_config.to_dict() == wanted.generation_config.to_dict()
        assert model.config.dtype == wanted.config.dtype and model.name_or_path == wanted.name_or_path
        assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())


@pytest.mark.parametrize(("quant_type", "double"), [("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)])
def test_a_kept_base_is_the_base_to_the_bit(base: Path, quant_type: str, double: bool) -> None:
    assert_is_plain(base, torch.float32, quant_type, double)
    assert len(kept.entries()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_base_stored_in_bf16_is_itself_in_every_format(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    assert_is_plain(stored_in_bf16(base, tmp_path / "bf16"), dtype)


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_base_is_itself_to_the_bit(demo_base: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert_is_plain(demo_base, dtype)


def test_training_and_comparing_share_one_entry_and_its_4_bit_values(base: Path) -> None:
    models = [load(base, dtype)[0] for dtype in (torch.bfloat16, torch.float32)]
    assert len(kept.entries()) == 1
    values = [
        {name: part for name, part in model.state_dict().items() if part.dtype == torch.uint8 and "state" not in name}
        for model in models
    ]
    assert len(values[0]) > 10 and values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    assert [model.dtype for model in models] == [torch.bfloat16, torch.float32]


def test_what_is_done_to_a_model_does_not_reach_what_is_kept(bloom: Path) -> None:
    load(bloom)
    wanted = logits(load(bloom)[0])
    model, _ = load(bloom)
    for part in model.parameters():
        part.data.zero_()
    again, said = load(bloom)
    assert torch.equal(logits(again), wanted) and not said


def cut(entry: Path) -> None:
    body = (entry / "model.safetensors").read_bytes()
    (entry / "model.safetensors").write_bytes(body[: len(body) // 2])


def flip(at: float) -> Callable[[Path], None]:
    def change(entry: Path) -> None:
        body = bytearray((entry / "model.safetensors").read_bytes())
        body[int((len(body) - 1) * at)] ^= 1
        (entry / "model.safetensors").write_bytes(body)

    return change


DAMAGE = {
    "cut short": cut,
    "empty": lambda entry: (entry / "model.safetensors").write_bytes(b""),
    "a bit of its header": flip(0.0),
    "a bit in its middle": flip(0.5),
    "its last bit": flip(1.0),
    "no weights": lambda entry: (entry / "model.safetensors").unlink(),
    "no digest": lambda entry: (entry / "model.xxh3").unlink(),
    "another digest": lambda entry: (entry / "model.xxh3").write_text("0" * 32),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_and_mended(llama: Path, damage: Callable[[Path], None]) -> None:
    wanted = logits(load(llama)[0])
    damage(kept.entries()[0].path)
    model, said = load(llama)
    assert said == ["The kept 4-bit base is damaged: quantizing again"]
    assert torch.equal(logits(model), wanted)
    assert not load(llama)[1], "it was written again, whole"


def test_a_base_that_changed_in_place_is_quantized_anew(bloom: Path, tmp_path: Path) -> None:
    path = stored_in_bf16(bloom, tmp_path / "base")
    before = logits(load(path)[0])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    model.transformer.ln_f.bias.data += 1  # 64 numbers: the fingerprint's samples may miss them
    model.save_pretrained(path)
    old = kept.entries()
    assert not torch.equal(logits(load(path)[0]), before)
    assert len(kept.entries()) == 1 and kept.entries() != old, "the old entry is of no use to anybody"


def test_entries_of_bases_that_are_gone_go_too(bloom: Path, llama: Path, tmp_path: Path) -> None:
    gone = stored_in_bf16(bloom, tmp_path / "gone")
    load(gone)
    gone.rename(tmp_path / "away")
    load(llama)
    assert [entry.name.partition("-nf4")[0] for entry in kept.entries()] == ["small-llama"]


@pytest.mark.slow
def test_where_it_cannot_be_written_loading_goes_on_and_leaves_nothing(bloom: Path, cache: Path) -> None:
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"{LOAD.replace('; m = ', '; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); m = ')}\n"
        "print(float(m(input_ids=torch.tensor([[5, 9]])).logits.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bloom)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "cannot be kept" in said[0] and "so it is made each time" in said[0] and len(said) == 2
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_nearly_full_disk_is_left_alone(bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_cache, "_LEFT_FREE", 2**60)
    model, said = load(bloom)
    assert "cannot be kept" in said[0] and "the disk is nearly full" in said[0] and not kept.entries()
    assert torch.equal(logits(model), logits(plain(bloom, torch.float32)))


def test_without_a_place_for_the_cache_loading_goes_on(
    bloom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "file"))
    model, said = load(bloom)
    assert "cannot be kept" in said[0] and torch.equal(logits(model), logits(plain(bloom, torch.float32)))


@pytest.mark.slow
def test_two_processes_at_once_are_safe(llama: Path, cache: Path) -> None:
    code = f"{LOAD}; print(m(input_ids=torch.tensor([{IDS[0].tolist()}])).logits.double().sum().item())"
    command = [sys.executable, "-c", code, str(llama)]
    pair = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {child.communicate(timeout=120)[0].splitlines()[-1] for child in pair}
    assert [child.returncode for child in pair] == [0, 0] and len(told) == 1
    assert len(kept.entries()) == 1 and not list(cache.glob("*.part"))


def test_an_interrupted_write_is_no_entry_and_is_cleaned_up(llama: Path, cache: Path) -> None:
    load(llama)
    entry = kept.entries()[0]
    entry.path.rename(kept.aside(entry.name))
    (kept.aside(entry.name) / "model.xxh3").unlink()
    load(llama)
    assert [found.name for found in kept.entries()] == [entry.name] and not list(cache.glob("*.part"))


def test_clearing_frees_what_it_says_and_skips_what_is_in_use(bloom: Path, llama: Path) -> None:
    for path in (bloom, llama):
        load(path)
    used, other = kept.entries()
    with kept.lock(used.name):
        assert kept.clear() == other.bytes > 100_000
    assert kept.entries() == [used]
    model, _ = load(bloom if "bloom" in used.name else llama)
    assert kept.clear() == used.bytes and kept.entries() == [] and kept.clear() == 0
    assert logits(model).isfinite().all(), "a loaded base stays whole"


def test_a_folder_without_a_model_is_a_sentence_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)
    assert not kept.entries()


def test_the_command_line_shows_and_clears(llama: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--headless-cache"]) == 0
    assert capsys.readouterr().out.split() == ["0.0", "MB", "in", str(cache)]
    load(llama)
    assert main.main(["--headless-cache", "--clear"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "MB  small-llama-nf4-double-cpu-" in shown[0] and str(cache) in shown[1] and shown[2] == "Freed 0.3 MB"
    assert main.main(["--clear"]) == 2 and not os.listdir(cache)[1:]


def test_what_was_quantized_is_gone_before_the_model_is_built_from_it(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a cycle of references: on a GPU the first load of a base would hold it twice."""
    plain, there = quantized_cache._assemble, []

    def linears() -> int:
        return sum(type(thing) is Linear4bit for thing in gc.get_objects())

    def assemble(*args: Any) -> Any:
        there.append(linears())
        return plain(*args)

    monkeypatch.setattr(quantized_cache, "_assemble", assemble)
    gc.collect()
    before = linears()
    load(llama)
    assert there == [before]
