"""Folders that other trainers leave: compared as plain PEFT computes them, measured, exported; what is not known is told."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_gui.errors import UserError
from qlora_gui.evaluation import job as evaluations
from qlora_gui.evaluation.run import evaluate
from qlora_gui.export import job as exports
from qlora_gui.export.work import export
from qlora_gui.inference import client
from qlora_gui.inference.columns import Columns
from qlora_gui.runs.store import RunStore
from tests.adapters import fresh, made_adapter, proof
from tests.elsewhere import MISHAPS, SHAPES, copied, shaped

# Which patterns of rank an adapter has, its tensors must have too.
MADE_WITH = {"patterns": {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 4}}}
ROWS = [{"prompt": f"Question {number}?", "completion": f"Answer {number}."} for number in range(4)]


@pytest.fixture(scope="module")
def sources(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter by plain PEFT, and one whose ranks and alphas differ by module."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        name: made_adapter(llama, folder / name, 1, target_modules=["q_proj", "v_proj"], **MADE_WITH.get(name, {}))
        for name in ("plain", "patterns")
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_logits_of_plain_peft(
    shape: str, sources: dict[str, Path], llama: Path, tmp_path: Path
) -> None:
    folder = shaped(sources.get(shape, sources["plain"]), tmp_path / shape, shape)
    arguments = client.base_of([folder], str(llama))
    columns = Columns()
    key = (arguments["base_model"], "", "nf4", True)
    said = columns.load(key, [folder], lambda text: None, chosen=arguments["chosen"])[1]
    assert said["self_test"].startswith("equals PEFT's logits") and "leaves out" not in said["warning"]
    assert columns.base and columns.multi_lora
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = fresh(llama, folder)(input_ids=ids).logits
        with columns.multi_lora.activate([0]):
            ours = columns.base.model(input_ids=ids).logits
        alone = columns.base.model(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (alone - theirs).abs().max() > 1e-2 * theirs.abs().max()


@pytest.mark.parametrize("mishap", MISHAPS)
def test_mishaps_are_refused_with_what_to_do(
    mishap: str, sources: dict[str, Path], llama: Path, tmp_path: Path
) -> None:
    spoil, said = MISHAPS[mishap]
    folder = copied(sources["plain"], tmp_path / "spoiled")
    spoil(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=said):
        proof(llama, folder, chosen=True)


def test_settings_of_a_newer_peft_are_told(sources: dict[str, Path], llama: Path, tmp_path: Path) -> None:
    """Those that say something: what they would change is not computed, by PEFT's own loader neither."""
    quiet = copied(sources["plain"], tmp_path / "quiet", None, use_warp=False, warp_config={})
    assert "warp" not in proof(llama, quiet)["warning"]
    loud = copied(sources["plain"], tmp_path / "loud", None, use_warp=True, warp_config={"depth": 2})
    assert "does not know and leaves out: use_warp, warp_config" in proof(llama, loud)["warning"]


def test_the_proof_says_which_base_was_named_and_which_is_used(
    sources: dict[str, Path], llama: Path, tmp_path: Path
) -> None:
    for number, (named, chosen, why) in enumerate(
        [
            ("unsloth/small-llama-unsloth-bnb-4bit", False, "that is the same name but for its 4-bit form"),
            ("someone/small-llama-bnb-8bit", False, "that is the same name but for its 8-bit form"),
            ("mirror/small-llama", False, "that is the same name"),
            (None, True, "it was chosen"),
        ]
    ):
        folder = copied(sources["plain"], tmp_path / str(number), named)
        said = proof(llama, folder, chosen)["trained_on"]
        assert said.startswith(f"{named or 'none'}; on {llama} because {why}; all shapes fit")


@pytest.mark.slow
def test_one_in_the_store_is_measured_and_its_result_kept(
    sources: dict[str, Path], llama: Path, store: RunStore, tmp_path: Path
) -> None:
    """Until its weights are others. Beside one that lies elsewhere nothing is written, which is told."""
    inside, outside = (copied(sources["plain"], root / "mine", None) for root in (store.root, tmp_path / "else"))
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    said: list[str] = []
    with pytest.raises(UserError, match="name rows to measure on with --data"):
        evaluate([inside], None, evaluations.Settings(), said.append, base=str(llama))
    settings = evaluations.Settings(rows=4, max_new_tokens=0)
    evaluate([inside, outside], str(data), settings, said.append, base=str(llama), root=store.root)
    known = evaluations.result(store.get("mine"))
    assert known is not None and known.adapter.name == "mine"
    assert not (outside / evaluations.FILE).exists()
    assert any("its evaluation is not kept there" in text for text in said)
    weights = inside / "adapter_model.safetensors"
    weights.write_bytes((sources["patterns"] / weights.name).read_bytes())
    assert evaluations.result(store.get("mine")) is None


def test_one_is_exported_onto_the_base_that_is_named(
    sources: dict[str, Path], llama: Path, store: RunStore, tmp_path: Path
) -> None:
    folder = copied(sources["plain"], store.root / "mine", None)
    (folder / "fetched.json").write_text(json.dumps({"from": "me/mine", "revision": "abc"}))
    settings = exports.Settings(out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="does not say what its base is: name it with --base"):
        export(folder, settings, lambda text: None, lambda done, of: None)
    made = export(folder, settings, lambda text: None, lambda done, of: None, str(llama))
    assert "not a run of this program" in made.proof and not made.worse
    card = (made.folder / "README.md").read_text()
    assert "Trained elsewhere (me/mine on the hub, revision abc), exported by qlora_gui" in card
    assert "Not known: the adapter was trained elsewhere." in card
    merged = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).state_dict()
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    before = base.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    theirs = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()
    assert merged.keys() == theirs.keys()
    for name, tensor in theirs.items():  # stored in bf16: of either sum the nearest such number
        torch.testing.assert_close(merged[name], tensor, rtol=2**-8, atol=1e-6)
    assert (before - theirs["model.layers.0.self_attn.q_proj.weight"]).abs().max() > 0.01
