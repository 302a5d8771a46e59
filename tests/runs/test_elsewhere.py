"""Adapters made elsewhere in the store: listed, offered with the base they name, and deleted like runs."""

import re
from pathlib import Path

import pytest

from qlora_gui.errors import UserError
from qlora_gui.inference import client
from qlora_gui.report import collect, document, markdown
from qlora_gui.runs import base_names, elsewhere
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import app, run_view
from qlora_gui.ui.compare import offers
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.runs import comparison, index
from tests.adapters import made_adapter, made_run
from tests.elsewhere import MISHAPS, SHAPES, copied, shaped


@pytest.fixture(scope="module")
def foreign(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_adapter(llama, tmp_path_factory.mktemp("foreign") / "made", 1, target_modules=["q_proj", "v_proj"])


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; `having` puts models into it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def having(cache: Path, *names: str, adapter: bool = False) -> None:
    for name in names:
        snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for file in ("config.json", "model.safetensors", *(["adapter_config.json"] if adapter else [])):
            (snapshot / file).touch()


def test_every_shape_is_listed_drawn_and_deleted(foreign: Path, store: RunStore, llama: Path) -> None:
    for shape in SHAPES:
        shaped(foreign, store.root / shape, shape)
    (store.root / "link").symlink_to(foreign)
    made_run(store, llama, "own")
    summaries = index.summaries(store)
    assert {summary.id for summary in summaries} == {*SHAPES, "link", "own"}
    runs = [store.get(summary.id) for summary in summaries]
    for run, summary in zip(runs, summaries, strict=True):
        if run.id == "own":
            continue
        assert summary.state == run.state() == "made elsewhere" and summary.adapter and not summary.checkpoint
        assert summary.row()[1] == "made elsewhere" and summary.row()[4:8] == [None] * 4
        drawn = run_view.Drawing(run, summary.state)
        assert "it has no training history here" in drawn.overview and not drawn.plots and not drawn.diagnosis
        assert dict(elsewhere.settings(run.path))["peft_type"] == "LORA"
    assert "How they ended" in comparison.render(runs, summaries)
    facts = collect.facts_of(store)
    assert "Made elsewhere." in markdown.render(document.blocks(facts))
    assert {experiment.state for experiment in facts.experiments} == {"made elsewhere", "failed"}
    for run in runs:
        store.delete(run)
    assert not index.summaries(store) and (foreign / "adapter_config.json").is_file()  # what a link leads to stays


def test_an_index_that_was_kept_says_the_same(foreign: Path, store: RunStore) -> None:
    copied(foreign, store.root / "one", "unsloth/small-llama-bnb-4bit", revision="abc")
    first = index.Index(store.root)
    known = first.look(None).summaries
    first._keep()
    assert index.Index(store.root).look(None).summaries == known
    assert (known[0].base, known[0].revision) == ("unsloth/small-llama-bnb-4bit", "abc")


def test_one_that_changes_is_read_again(foreign: Path, store: RunStore) -> None:
    folder = copied(foreign, store.root / "one")
    assert index.summaries(store)[0].adapter
    (folder / "adapter_model.safetensors").unlink()
    assert not index.summaries(store)[0].adapter
    assert offers.refused(index.summaries(store), "") == ["one: it has no adapter_model.safetensors."]


def test_adapters_a_folder_deeper_are_told(foreign: Path, store: RunStore) -> None:
    copied(foreign, store.root / "outer" / "final")
    assert index.summaries(store) == []
    assert "a folder deeper than adapters do: outer/final" in app.text(store)
    with pytest.raises(UserError, match=r"but its folders do \(final\): name one of them"):
        client.base_of([store.root / "outer"])


def test_a_whole_model_is_no_adapter(llama: Path) -> None:
    with pytest.raises(UserError, match="a whole model, which can be named as a base"):
        client.base_of([llama])


@pytest.mark.parametrize("mishap", [name for name in MISHAPS if name != "cut"])
def test_mishaps_are_told_where_the_adapter_is_shown(foreign: Path, store: RunStore, mishap: str) -> None:
    spoil, said = MISHAPS[mishap]
    folder = copied(foreign, store.root / "one")
    spoil(folder / "adapter_model.safetensors")
    assert re.search(said, run_view.Drawing(store.get("one"), "made elsewhere").overview)


@pytest.mark.parametrize(
    ("named", "cached", "taken"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", ["meta-llama/Llama-3.2-1B-Instruct"], 0),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", ["unsloth/Llama-3.2-1B-Instruct"], 0),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", ["meta-llama/Llama-3.1-8B"], 0),
        ("unsloth/X-bnb-4bit", ["unsloth/X-bnb-4bit", "owner/X"], 1),
        ("unsloth/X-bnb-4bit", ["unsloth/X-bnb-4bit"], 0),
        ("someone/X-bnb-4bit", ["someone/x"], 0),
        ("qwen/qwen3-4b", ["Qwen/Qwen3-4B"], 0),
        ("meta-llama/Llama-3.2-1B", ["unsloth/Llama-3.2-1B"], 0),
        ("unsloth/X", ["someone/X"], 0),
        ("unsloth/X", ["someone/X", "stranger/X"], None),  # which of them it is a copy of is not known
        ("someone/X", ["stranger/X"], None),  # which may be any model of that name
        ("someone/X-bnb-4bit", ["stranger/X"], None),
        ("someone/X", [], None),
        ("demo", ["someone/demo"], None),
        ("", ["someone/X"], None),
    ],
)
def test_the_base_is_what_of_it_is_at_hand(hub_cache: Path, named: str, cached: list[str], taken: int | None) -> None:
    having(hub_cache, *cached)
    name, revision = base_names.at_hand(named, "v1")
    assert name == (named if taken is None else cached[taken])
    assert revision == ("v1" if name.casefold() == named.casefold() else "")


def test_an_adapter_in_the_cache_is_no_base(hub_cache: Path) -> None:
    having(hub_cache, "unsloth/X", adapter=True)
    assert base_names.at_hand("owner/X") == ("owner/X", "")


def test_they_are_offered_with_the_base_they_name(foreign: Path, store: RunStore, llama: Path, hub_cache: Path) -> None:
    """Of one that names none, or the path of another machine, shapes decide: it comes last, with every base."""
    made_run(store, llama, "own")
    for name, base in (
        ("same", "unsloth/Small-LLAMA-bnb-4bit"),
        ("silent", None),
        ("lost", "/content/mine"),
        ("other", "owner/else"),
    ):
        copied(foreign, store.root / name, base)
    runs = index.summaries(store)
    assert offers.bases(runs) == [str(llama), "owner/else"]
    offered = offers.adapters(runs, str(llama))
    assert set(offered[:2]) == {"own", "same"} and set(offered[2:]) == {"silent", "lost"}
    assert offers.refused(runs, str(llama)) == ["other: it was trained on another base, owner/else."]
    assert offers.adapters(runs, "owner/else")[0] == "other" and "same" not in offers.adapters(runs, "owner/else")
    assert set(offers.adapters(runs, "typed/base")) == {run.id for run in runs}
    by_id = {run.id: run for run in runs}
    assert offers.base_of([by_id["silent"]], runs) == "" and offers.base_of([by_id["same"]], runs) == str(llama)
    assert offers.share_a_base([by_id["own"], by_id["same"], by_id["silent"]])
    assert not offers.share_a_base([by_id["own"], by_id["other"]])


def room(store: RunStore) -> Room:
    """As the Compare tab has one; what is asked of it here needs no components."""
    return Room(store, client.CompareClient(), "base", "chosen", "whole", None, None, {}, [])  # type: ignore[arg-type]


def test_columns_get_the_base_that_is_shown(foreign: Path, store: RunStore, llama: Path) -> None:
    made_run(store, llama, "own")
    copied(foreign, store.root / "same", "unsloth/small-llama-bnb-4bit")
    copied(foreign, store.root / "silent", None)
    for chosen, on_its_word in ((["same"], True), (["silent"], False), (["own", "same"], True)):
        load = client.columns_of(*room(store).asked({"base": str(llama), "chosen": chosen}))
        assert (load.base_model, load.chosen) == (str(llama), not on_its_word)
    with pytest.raises(UserError, match="None of these adapters says what its base is"):
        room(store).asked({"base": "", "chosen": ["silent"]})


def test_guests_get_no_base_that_an_adapter_smuggles_in(foreign: Path, store: RunStore, llama: Path) -> None:
    """A stranger's config may name any folder of this machine."""
    copied(foreign, store.root / "sly", str(llama))
    guests = RunStore(store.root, [store.root])
    assert room(store).asked({"base": str(llama), "chosen": ["sly"]})
    with pytest.raises(UserError, match="in none of the folders that may be named"):
        room(guests).asked({"base": str(llama), "chosen": ["sly"]})
    with pytest.raises(UserError, match="in none of the folders that may be named"):
        elsewhere.check_base_allowed(guests, guests.get("sly"))
