"""DoRA, replaced modules and trained tokens: PEFT's own logits on the same 4-bit base, beside plain LoRA, and a base that stays clean."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_gui.errors import UserError
from qlora_gui.inference import clean_base, evidence, peft_lane, protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from tests.adapters import BEYOND as KINDS
from tests.adapters import beyond, fresh, logits, made_adapter, proof

HEAD = "base_model.model.lm_head.weight"
KEY = ("nf4", True)


@pytest.fixture(scope="module")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("beyond")
    return {kind: beyond(llama, root / kind.replace(" ", "-"), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_they_equal_plain_peft_on_the_same_4_bit_base(kind: str, adapters: dict[str, Path], llama: Path) -> None:
    """The base gives the same logits to the bit before, between and after."""
    columns = Columns()
    told = columns.load((str(llama), "", *KEY), [adapters[kind]], lambda text: None)[1]
    assert (
        told["self_test"].startswith("computed by PEFT in a lane of its own, as ")
        and KINDS[kind][1] in told["self_test"]
    )
    assert columns.base and columns.multi_lora
    before = logits(columns.base.model)
    theirs = logits(fresh(llama, adapters[kind]))
    with columns.multi_lora.activate([0]):
        ours = logits(columns.base.model)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (theirs - before).abs().max() > 0.1 * theirs.abs().max(), "the adapter should do something"
    assert torch.equal(logits(columns.base.model), before)
    assert torch.equal(before, logits(fresh(llama, None)))


def test_dora_on_linears_that_stay_packed(
    adapters: dict[str, Path], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: PEFT takes the norms of the 4-bit values."""
    monkeypatch.setattr(clean_base, "unpack_if_it_fits", lambda model: False)
    columns = Columns()
    columns.load((str(llama), "", *KEY), [adapters["dora and head"]], lambda text: None)
    assert columns.base and columns.multi_lora and "unpacked" not in columns.base.proof["quantization"]
    theirs = logits(fresh(llama, adapters["dora and head"]))
    with columns.multi_lora.activate([0]):
        assert torch.equal(logits(columns.base.model), theirs)


def test_plain_ones_share_a_batch_and_the_others_follow(adapters: dict[str, Path], llama: Path, tmp_path: Path) -> None:
    """Each says in company what it says alone."""
    plain = [made_adapter(llama, tmp_path / f"p{number}", number, r=4, target_modules=["v_proj"]) for number in (4, 5)]
    mixed = [plain[0], adapters["dora"], plain[1], adapters["head"]]
    columns, key = Columns(), (str(llama), "", *KEY)
    asked = [[{"role": "user", "content": "Where is my parcel?"}]]
    decoding = Decoding(greedy=True, max_new_tokens=8)

    def answers(folders: list[Path]) -> list[str]:
        columns.load(key, folders, lambda text: None)
        events: list[protocol.Event] = []
        columns.answer(asked * (len(folders) + 1), decoding, events.append, lambda: False)
        return [answer.text for answer in protocol.collect(events, len(folders) + 1)]

    together = answers(mixed)
    assert columns.multi_lora and columns.multi_lora.batches([-1, 0, 1, 2, 3]) == [[-1, 0, 2], [1], [3]]
    alone = [answers([folder]) for folder in mixed]
    assert together == [alone[0][0], *(texts[1] for texts in alone)] and len(set(together)) > 3


def test_facts_say_what_is_not_known(adapters: dict[str, Path], llama: Path) -> None:
    columns = Columns()
    columns.load((str(llama), "", *KEY), [adapters["dora"], adapters["head"]], lambda text: None)
    dora, head = (evidence.facts(columns, adapter) for adapter in columns.adapters)
    assert dora["delta_ratio"] is dora["b_zero_share"] is None and dora["linears"] == 6
    assert head["embeddings_in_file"] and not dora["embeddings_in_file"]


def test_peft_failing_half_way_leaves_the_base_as_it_was(
    adapters: dict[str, Path], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = peft_lane.PeftModel.from_pretrained

    def half(model: Any, *args: Any, **kwargs: Any) -> None:
        real(model, *args, **kwargs)
        raise ValueError("the second half is missing")

    columns, key = Columns(), (str(llama), "", *KEY)
    columns.load(key, [], lambda text: None)
    assert columns.base
    before = {name: id(part) for name, part in columns.base.model.named_modules()}
    monkeypatch.setattr(peft_lane.PeftModel, "from_pretrained", half)
    for kind in ("dora", "head", "tokens"):
        with pytest.raises(UserError, match=r"and PEFT refuses it \(the second half is missing\)"):
            columns.load(key, [adapters[kind]], lambda text: None)
        assert {name: id(part) for name, part in columns.base.model.named_modules()} == before
    assert torch.equal(logits(columns.base.model), logits(fresh(llama, None)))


def changed(adapter: Path, folder: Path, tensors: dict[str, torch.Tensor | None], **config: Any) -> Path:
    """A copy with other tensors (None: without it) and other values in its config."""
    folder.mkdir()
    told = json.loads((adapter / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    have = load_file(adapter / "adapter_model.safetensors") | tensors
    save_file({name: part for name, part in have.items() if part is not None}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "tensors", "config", "said"),
    [
        ("head", {HEAD: torch.zeros(1032, 64)}, {}, r"replaces 'lm_head.weight' by one of the shape \[1032, 64\]"),
        ("head", {HEAD: None}, {}, "damaged: its config says that it replaces 'lm_head.weight'"),
        ("head", {}, {"modules_to_save": None}, "lm_head.weight', which is no plain LoRA"),
        ("head", {}, {"modules_to_save": "lm_head"}, "damaged: its modules_to_save is 'lm_head'"),
        ("head", {}, {"modules_to_save": ["lm_head", ""]}, "damaged: its modules_to_save"),
        ("head", {}, {"modules_to_save": ["(a+)+$"]}, "damaged: its modules_to_save"),
        (
            "head",
            {},
            {"modules_to_save": ["lm_head", "model"]},
            "its config says that it replaces 'model.embed_tokens.weight'",
        ),
        ("head", {HEAD: torch.full((1000, 64), torch.nan)}, {}, "contain NaN or infinite values"),
        ("tokens", {}, {"trainable_token_indices": {"embed_tokens": "x"}}, "damaged: its trainable_token_indices are"),
        ("tokens", {}, {"trainable_token_indices": [3, 5, 99999]}, "PEFT refuses it"),
        ("tokens", {}, {"trainable_token_indices": [3]}, "PEFT refuses it"),
        ("dora", {}, {"use_dora": False}, "lora_magnitude_vector', which is no plain LoRA"),
        ("dora", {}, {"target_modules": ["q_proj", "down_proj", "up_proj"]}, "PEFT refuses it.*missing adapter keys"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    kind: str,
    tensors: dict[str, Any],
    config: dict[str, Any],
    said: str,
    adapters: dict[str, Path],
    llama: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=said):
        proof(llama, changed(adapters[kind], tmp_path / "odd", tensors, **config))
