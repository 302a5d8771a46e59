"""Will it fit, as the page says it, without a page: the plan, the changes, the autopsy, and the kept bases."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui.cache import Entry
from qlora_gui.errors import UserError
from qlora_gui.memory import advice, budget, known_models
from qlora_gui.memory.calibration import Calibration
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.runs.history import RunHistory
from qlora_gui.ui import memory_views, views
from qlora_gui.ui.runs import cache
from qlora_gui.ui.train.memory_panel import Shapes

NASTY = "<script>alert('x')</script> & \"q\""
GB = 2**30


def planned(gib: float, **knobs: Any) -> MemoryPlan:
    config = configs.resolve(knobs, preset="experiment-2")
    return plan(config, known_models.find(config), budget.card(gib))


def test_the_panel_says_verdict_peak_checkpointing_and_that_it_is_an_estimate() -> None:
    small = planned(8, batch_size=16)
    said = unescape(memory_views.panel(small))
    assert "Does not fit" in said and "too much" in said and "of 8.0 GB" in said
    assert small.moment in said and "gradient checkpointing: all" in said and "Estimated from" in said
    assert "Fits" in memory_views.line(planned(80))
    seen = replace(planned(80), correction=Calibration(3, 1.04, 0.05))
    assert "corrected by 1.04: predictions for 3 runs" in memory_views.panel(seen)


@pytest.mark.parametrize("gib", [4, 80])
def test_the_bar_is_as_wide_as_card_or_plan_and_marks_where_the_card_ends(gib: int) -> None:
    drawn = planned(gib)
    bar = memory_views.bar(drawn)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", bar)]
    assert sum(widths) == pytest.approx(min(100 * drawn.total / drawn.budget.total, 100), abs=0.1)
    assert ("<u " in bar) == (drawn.verdict == "does not fit")


def test_the_table_has_every_term() -> None:
    drawn = planned(16)
    table = unescape(memory_views.table(drawn))
    assert all(term.label in table for term in drawn.terms) and "Peak" in table


def test_names_of_devices_and_programs_are_escaped() -> None:
    nasty = budget.Budget(NASTY, 16 * GB, 9 * GB, "cuda", NASTY)
    config = configs.resolve(preset="demo")
    drawn = plan(config, known_models.find(config), nasty)
    found = {"phase": NASTY, "step": 3, "held_by": [{"pid": 1, "name": NASTY, "bytes": GB}]}
    events = [
        {"t": 0.0, "kind": "fit", "text": NASTY, "knobs": {}},
        {"t": 0.0, "kind": "memory", "gpu": NASTY, "predicted": 10, "measured": 10},
    ]
    for said in (
        memory_views.panel(drawn),
        memory_views.line(drawn),
        memory_views.table(drawn),
        memory_views.unknown(NASTY),
        memory_views.oom_report(found),
        memory_views.summary(RunHistory(events)),
        cache.listed([Entry(NASTY, Path("/x"), GB)]),
    ):
        assert "<script>" not in said


def test_at_most_five_changes_the_ones_that_fit_and_only_cost_time_first() -> None:
    def change(saves: int, fits: bool, same: bool, **knobs: Any) -> advice.Change:
        return advice.Change(knobs, f"saves {saves}", saves, fits, same)

    found = [
        change(9, True, False, base_model="small"),
        *(change(8 - number, True, True, batch_size=number + 1) for number in range(4)),
        change(3, False, True, optimizer="adamw_8bit"),
        change(2, False, False, rank=8),
        change(1, False, False, bias="none"),
    ]
    offered = memory_views.offers([change.as_dict() for change in found])
    assert [offer.knobs for offer in offered] == [
        {"batch_size": 1},
        {"batch_size": 4},  # the mildest; those between are left out
        {"base_model": "small"},
        {"optimizer": "adamw_8bit"},
        {"rank": 8},
    ]
    assert memory_views.caption(offered[0], True).endswith("fits then")
    assert "fits" not in memory_views.caption(offered[4], True) + memory_views.caption(offered[0], False)


def test_a_prediction_is_held_against_what_was_measured() -> None:
    event = {"t": 0.0, "kind": "memory", "gpu": "RTX", "predicted": 10 * GB, "measured": round(10.3 * GB)}
    assert "predicted 10.0 GB, measured 10.3 GB (3% off)" in memory_views.summary(RunHistory([event]))
    assert memory_views.summary(RunHistory()) == ""


def test_an_autopsy_leaves_out_what_nobody_knows_and_a_resumed_run_has_none() -> None:
    bare = {"phase": "in the loss", "step": 2, "predicted": None, "measured": None, "held_by": [], "changes": []}
    failed = {"t": 0.0, "kind": "failed", "message": "out of memory", "bug": False, "autopsy": bare}
    assert RunHistory([failed]).oom_report == bare
    said = memory_views.oom_report(bare)
    assert "in the loss" in said and "predicted" not in said and "No other program" in said
    assert memory_views.retries(bare) == []
    assert RunHistory([failed, {"t": 1.0, "kind": "started"}]).oom_report is None
    with_changes = bare | {"changes": [{"knobs": {"rank": 8}, "text": "Rank 8", "saves": 1, "fits": False}] * 2}
    assert len(memory_views.retries(with_changes)) == 2
    told = views.outcome("failed", RunHistory([failed | {"autopsy": with_changes}]), "", False, False)
    assert "one of the changes below" in told
    assert "Fix the cause" in views.outcome("failed", RunHistory([failed]), "", False, False)


def test_typing_a_base_never_asks_the_hub() -> None:
    shapes = Shapes()
    config = configs.resolve({"base_model": "nobody/knows-this"})
    with pytest.raises(UserError, match="has not been asked"):
        shapes.get(config)
    assert shapes.get(configs.resolve(preset="experiment-1")).layers == 30
