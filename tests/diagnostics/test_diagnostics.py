"""Diagnostics: every check speaks where its fault is planted, and only there; a healthy run hears nothing."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui import diagnostics
from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import Finding, adapter, answers, curves, data, settings
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import card
from qlora_gui.memory.estimate import plan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs.events import sound
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, findings
from qlora_gui.ui import findings as ui_findings
from tests.conftest import train, wait_until_ended
from tests.factories import (
    DEMO,
    Values,
    facts,
    healthy_evaluation,
    healthy_events,
    held_out_losses,
    of_kind,
    step,
    texts,
)

NASTY = "<script>alert('x')</script> & \"q\""


def history(events: list[Values]) -> RunHistory:
    """As it is read from a file with these events."""
    read = (event for event, _ in map(sound, events))
    return RunHistory([event for event in read if event is not None])


def turns(**changed: int) -> Values:
    """The counts of answers of 301 rows, `changed` of which are not learned."""
    none = {"context_only": 0, "cut": 0, "lost": 0, "split": 0}
    return none | {"present": 301, "learned": 301 - sum(changed.values())} | changed


def before(config: RunConfig = DEMO, **other: Any) -> list[Finding]:
    return diagnostics.before(config, **{"shape": known_models.find(config), "facts": facts()} | other)


def names(found: list[Finding]) -> set[str]:
    return {finding.check for finding in found}


# Each plants one fault and gives what is found then.


def with_knobs(**knobs: Any) -> Callable[[], list[Finding]]:
    return lambda: before(DEMO.model_copy(update=knobs))


def with_facts(**changed: Any) -> Callable[[], list[Finding]]:
    return lambda: before(facts=facts(**changed))


def with_events(change: Callable[[list[Values]], Any]) -> Callable[[], list[Finding]]:
    def planted() -> list[Finding]:
        events = healthy_events()
        change(events)
        return diagnostics.during(DEMO, history(events))

    return planted


def with_evaluation(**parts: Values) -> Callable[[], list[Finding]]:
    def planted() -> list[Finding]:
        evaluation = healthy_evaluation()
        for name, changed in parts.items():
            evaluation[name] |= changed
        return diagnostics.after(DEMO, history(healthy_events()), evaluation)

    return planted


def with_texts(base: Values | None = None, **changed: Any) -> Callable[[], list[Finding]]:
    evaluation = healthy_evaluation()
    both = {"base": evaluation["texts"]["base"] | (base or {}), "adapter": evaluation["texts"]["adapter"] | changed}
    return with_evaluation(texts=both)


def all_steps(**changed: Any) -> Callable[[list[Values]], Any]:
    return lambda events: [event.update(changed) for event in of_kind(events, "step")]


def one_step(place: int, **changed: Any) -> Callable[[list[Values]], Any]:
    return lambda events: of_kind(events, "step")[place].update(changed)


def flat(events: list[Values]) -> None:
    for event in of_kind(events, "step"):
        event["loss"] = 1.6 + event["loss"] % 0.1
    held_out_losses(1.62, 1.62, 1.618, 1.617)(events)


def memorized(events: list[Values]) -> None:
    for event in of_kind(events, "step"):
        event["loss"] *= 0.95 ** (event["step"] / 3)
    held_out_losses(1.62, 1.2, 1.1, 1.09)(events)


def on_wsl(**knobs: Any) -> Callable[[], list[Finding]]:
    def planted() -> list[Finding]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("platform.release", lambda: "5.15.167.4-microsoft-standard-WSL2")
            return before(DEMO.model_copy(update=knobs))

    return planted


PLANTED: dict[str, tuple[str, str, Callable[[], list[Finding]]]] = {
    # what is wrong: (check, words of its evidence, the findings with it)
    "rate too low": ("learning_rate", "is 1e-5", with_knobs(learning_rate=1e-5)),
    "rate too high": ("learning_rate", "is 0.01", with_knobs(learning_rate=1e-2)),
    "attention only": (
        "few_modules",
        "60 of 210 linear layers (q_proj, v_proj)",
        with_knobs(target_modules=["q_proj", "v_proj"]),
    ),
    "fused attention only": (
        "few_modules",
        "1 of 4 linear layers (query_key_value)",
        lambda: before(DEMO.model_copy(update={"target_modules": ["query_key_value"]}), shape=None),
    ),
    "few linears in the file": (
        "few_modules",
        "30 of 120",
        with_evaluation(adapter_facts={"linears": 30, "linears_available": 120}),
    ),
    "alpha too small": ("scaling", "alpha / rank is 0.25", with_knobs(alpha=4)),
    "alpha too large": ("scaling", "alpha / rank is 16", with_knobs(alpha=256)),
    "rsLoRA with the usual alpha": ("scaling", "alpha / sqrt(rank) is 8", with_knobs(use_rslora=True)),
    "high rank": ("high_rank", "Rank 64 without rsLoRA scales the update by 2;", with_knobs(rank=64, alpha=128)),
    "many epochs": ("many_epochs", "seen 8 times", with_knobs(epochs=8)),
    "many epochs by steps": ("many_epochs", "seen 13.2 times", with_knobs(max_steps=1000)),
    "lora_only": ("lora_only_biases", "lora_only", with_knobs(bias="lora_only")),
    "paged on WSL": ("nothing_is_paged", "paged_adamw_8bit, and this is WSL", on_wsl(optimizer="paged_adamw_8bit")),
    "no template": ("base_without_template", "demo brings no", with_facts(has_template=False)),
    "no template, evaluated": (
        "base_without_template",
        "demo brings no",
        with_evaluation(adapter_facts={"no_base_template": True}),
    ),
    "nothing held out": (
        "nothing_held_out",
        "No rows",
        lambda: before(DEMO.model_copy(update={"eval_fraction": 0.0}), facts=facts(splits=True)),
    ),
    "memory": (
        "does_not_fit",
        "of 0.2 GB",
        lambda: before(memory=plan(DEMO, known_models.find(DEMO), card(0.2))),
    ),
    "mask 0%": ("nothing_learned", "(0%)", with_facts(supervised_share=0.0)),
    "mask 100%": ("prompts_learned", "100% of 301 rows", with_facts(supervised_share=1.0)),
    "no EOS": ("eos_not_supervised", "In 301 of 301 rows", with_facts(eos_supervised=0.0)),
    "truncated": (
        "truncated_answers",
        "30 of 301 rows (10.0%) are cut at 256",
        with_facts(truncated=30, truncated_answers=30, eos_supervised=271 / 301),
    ),
    "lost answers": (
        "answers_not_learned",
        "3 of 301 answers (1.0%) are not learned. First: row 7, the chat template refuses it.",
        with_facts(turns=turns(lost=3), lost=[{"row": 7, "reason": "the chat template refuses it"}]),
    ),
    "answers beyond max_length": (
        "answers_beyond_max_length",
        "60 of 301 answers (19.9%) begin beyond 256 tokens",
        with_facts(turns=turns(cut=60)),
    ),
    "reasoning dropped": (
        "reasoning_not_learned",
        "300 of 301 answers carry reasoning that is not learned: the chat template does not show it",
        with_facts(turns=turns(), notes={"reasoning_dropped": 300}),
    ),
    "reasoning left out": (
        "reasoning_not_learned",
        "thinking is off",
        with_facts(turns=turns(), notes={"reasoning_off": 10}),
    ),
    "no end mark": ("no_end_mark", "writes nothing at the end", with_facts(end_from="eos")),
    "spelled tokens": ("spelled_tokens", "3 of 301 rows spell out", with_facts(spelled=3)),
    "double BOS": ("double_bos", "two BOS", with_facts(double_bos=True)),
    "double BOS, evaluated": ("double_bos", "two BOS", with_evaluation(adapter_facts={"double_bos": True})),
    "few steps": (
        "few_steps",
        "29 optimizer steps (16 rows per step, 301 rows)",
        with_knobs(gradient_accumulation=4),
    ),
    "few steps, running": ("few_steps", "40 optimizer steps", with_events(all_steps(max_steps=40))),
    "NaN loss": ("not_a_number", "first at step 6", with_events(one_step(3, loss=None))),
    "NaN gradient": ("not_a_number", "first at step 6", with_events(one_step(3, grad_norm=None))),
    "NaN held out": ("not_a_number", "first at step 76", with_events(held_out_losses(1.62, 0.86, None, None))),
    "zero gradient": ("no_gradient", "0 in step 1", with_events(one_step(0, grad_norm=0.0))),
    "spike": ("loss_spikes", "jumps to 4.20 at step 60", with_events(one_step(30, loss=4.2))),
    "fp16": (
        "half_precision",
        "Tesla T4 has no bf16",
        with_events(lambda events: of_kind(events, "base")[0].update(dtype="float16", device="Tesla T4")),
    ),
    "near the end of fp16": (
        "near_overflow",
        "reached 40,000",
        with_events(lambda events: of_kind(events, "eval")[-1].update(largest_activation=40_000.0)),
    ),
    "beyond the end of fp16": (
        "near_overflow",
        "went beyond it",
        with_events(lambda events: of_kind(events, "eval")[-1].update(largest_activation=None)),
    ),
    "shuffled": (
        "does_not_carry_over",
        "held-out loss is 1.800 at step 114 and was 1.620",
        with_events(held_out_losses(1.62, 1.7, 1.75, 1.8)),
    ),
    "held-out loss rises": (
        "overfit",
        "was 0.710 at step 76 and is 0.790 at step 114",
        with_events(held_out_losses(1.62, 0.86, 0.71, 0.79)),
    ),
    "gap": ("overfit", "the held-out loss 1.09, after 1.5 epochs", with_events(memorized)),
    "flat": ("hardly_learns", "is 1.617 and was 1.620", with_events(flat)),
    "B is zero": (
        "did_nothing",
        "every LoRA B is zero, and answers drift 0.0000",
        with_evaluation(adapter_facts={"b_zero_share": 1.0, "delta_ratio": 0.0}, drift={"kl": 0.0}),
    ),
    "tiny update": (
        "did_nothing",
        "5e-5 of the weights",
        with_evaluation(adapter_facts={"delta_ratio": 5e-5}, drift={"kl": 2e-4}),
    ),
    "biases lost": ("biases_lost", "holds none", with_evaluation(adapter_facts={"lora_only_lost": True})),
    "embeddings": ("embeddings_in_file", "embeddings", with_evaluation(adapter_facts={"embeddings_in_file": True})),
    "revision": ("different_base", "in revision", with_evaluation(adapter_facts={"revision_differs": True})),
    "quantization": (
        "different_base",
        "in quantization (nf4 with double quantization then, fp4 now)",
        with_evaluation(adapter_facts={"quantization_differs": True}, base={"quantization": "fp4"}),
    ),
    "vocabulary": ("different_base", "in vocabulary", with_evaluation(adapter_facts={"vocab_differs": True})),
    "template": (
        "template_differs",
        "3c2d07a8f2b1 in training",
        with_evaluation(adapter_facts={"template_differs": True}),
    ),
    "template by digest": (
        "template_differs",
        "(3c2d07a8f2b1 in training, 000000000000 of the base)",
        with_evaluation(base={"template": "000000000000"}),
    ),
    "P(EOS) low": (
        "eos_not_learned",
        "with 12% (base 31%)",
        with_evaluation(eos={"adapter": 0.12}, texts={"adapter": texts(ended_by_length=0.6)}),
    ),
    "answers run on": (
        "eos_not_learned",
        "90% of the adapter's answers end at the length limit (base 10%)",
        with_texts(base={"ended_by_length": 0.1}, ended_by_length=0.9),
    ),
    "loops": ("repeats", "55%", with_texts(rep4=0.55)),
    "depends less on prompts": (
        "ignores_prompts",
        "difference -0.41 [-0.50, -0.33]",
        with_evaluation(dependence={"adapter": 0.2, "difference": -0.41, "low": -0.5, "high": -0.33}),
    ),
    "does not depend on prompts": (
        "ignores_prompts",
        "0.01 nats",
        with_evaluation(dependence={"base": 0.0, "adapter": 0.01, "difference": 0.01, "low": -0.01, "high": 0.02}),
    ),
    "copies": ("copies", "72%", with_texts(copied=0.72)),
    "trade-off": ("forgets", "rose from 3.10 to 3.60", with_evaluation(general={"adapter": 3.6})),
    "forgets for nothing": (
        "forgets",
        "changed by +0.02",
        with_evaluation(general={"adapter": 3.6}, loss={"difference": 0.02, "low": -0.05, "high": 0.09}),
    ),
}
BAD = {"nothing_learned", "not_a_number", "no_gradient", "biases_lost"}
BAD_HERE = {"B is zero", "beyond the end of fp16"}  # other faults of the same checks are warnings


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_with_its_numbers_and_nothing_else_is(fault: str) -> None:
    check, evidence, planted = PLANTED[fault]
    found = planted()
    assert names(found) == {check}
    (finding,) = found
    assert evidence in finding.evidence
    assert (finding.level == "bad") == (check in BAD or fault in BAD_HERE)
    for said in (finding.evidence, finding.why, finding.fix):
        assert (said[0].isupper() or said[0].isdigit()) and said.endswith(".") and "  " not in said
    assert finding.source and not finding.source.endswith(".")


def test_every_check_has_a_planted_fault() -> None:
    checks = settings.CHECKS + data.CHECKS + curves.CHECKS + adapter.CHECKS + answers.CHECKS
    assert {check.__name__ for check in checks} == {check for check, _, _ in PLANTED.values()}
    assert len(checks) >= 18 and all(check.__doc__ for check in checks)


def test_a_healthy_run_hears_nothing_at_any_moment() -> None:
    assert before() == [] == before(facts=None, shape=None)
    events = healthy_events()
    for end in range(len(events) + 1):
        assert diagnostics.during(DEMO, history(events[:end])) == []
    assert diagnostics.after(DEMO, history(events), healthy_evaluation()) == []


def test_what_was_not_measured_is_not_judged() -> None:
    evaluation = healthy_evaluation() | dict.fromkeys(("texts", "eos", "general", "dependence"))
    assert diagnostics.after(DEMO, history(healthy_events()), evaluation) == []
    assert diagnostics.after(DEMO, history(healthy_events()), None) == []
    of_old_run = [event for event in healthy_events() if event["kind"] != "probe"]
    del of_kind(of_old_run, "data")[0]["facts"]
    assert diagnostics.after(DEMO, history(of_old_run), None) == []


def shape_of(config: RunConfig) -> Shape:
    return known_models.find(config, ask=False)


@pytest.mark.parametrize("with_shape", [True, False])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, {"lora_only_biases", "base_without_template"}),
        (2, {"base_without_template"}),
        (3, {"base_without_template"}),
    ],
)
def test_of_the_experiments_no_more_is_said_than_their_settings_allow(
    number: int, said: set[str], with_shape: bool
) -> None:
    config = configs.resolve(preset=f"experiment-{number}")
    found = diagnostics.before(config, shape_of(config) if with_shape else None)
    assert names(found) == said
    assert {finding.level for finding in found} == {"note"}  # nothing in its settings is a fault
    on_16_gb = diagnostics.before(config, shape_of(config), memory=plan(config, shape_of(config), card(16)))
    assert names(on_16_gb) == said


def test_the_experiments_on_the_demo_rows_have_few_steps() -> None:
    config = configs.resolve(preset="experiment-1")
    found = diagnostics.before(config, shape_of(config), facts(has_template=False))
    assert names(found) == {"lora_only_biases", "base_without_template", "few_steps"}
    (few,) = [finding for finding in found if finding.check == "few_steps"]
    assert few.evidence.startswith("The run has 57 optimizer steps") and few.knobs == {"gradient_accumulation": 2}


@pytest.mark.parametrize("knobs", [
    {"learning_rate": 1e-5},
    {"learning_rate": 0.5},
    {"target_modules": ["q_proj"]},
    {"alpha": 1},
    {"alpha": 400},
    {"use_rslora": True},
    {"rank": 64},
    {"rank": 1024, "alpha": 2048},
    {"epochs": 9},
    {"max_steps": 1000},
    {"max_steps": 7},
    {"bias": "lora_only"},
    {"gradient_accumulation": 4},
    {"gradient_accumulation": 64, "epochs": 1},
    {"batch_size": 64, "gradient_accumulation": 1, "epochs": 1},
], ids=str)  # fmt: skip
def test_the_change_of_a_finding_mends_it_and_breaks_nothing_else(knobs: Values) -> None:
    config = configs.make(DEMO.model_dump() | knobs)
    found = before(config)
    assert found
    for finding in found:
        mended = configs.make(config.model_dump() | finding.knobs)
        left = names(before(mended))
        if finding.check == "few_steps" and config.batch_size > 4:
            assert mended.epochs == 3  # as far as one goes by settings alone
        else:
            assert finding.check not in left
        assert left <= names(found)


def test_halving_a_rate_stays_among_the_usual_rates() -> None:
    for rate in (5e-2, 1e-3, 2e-4, 8e-5):
        config = DEMO.model_copy(update={"learning_rate": rate})
        events = healthy_events()
        one_step(30, loss=9.0)(events)
        (spike,) = diagnostics.during(config, history(events))
        assert spike.knobs and names(before(configs.make(config.model_dump() | spike.knobs))) == set()
    slow = DEMO.model_copy(update={"learning_rate": 5e-5})
    (spike,) = diagnostics.during(slow, history(events))
    assert spike.knobs == {} and "low already" in spike.fix


def test_findings_of_the_first_rows_only_say_so() -> None:
    few = facts(rows=2000, whole=False, splits=True, truncated=500, truncated_answers=500, eos_supervised=0.75)
    (found,) = before(facts=few)
    assert "500 of the first 2,000 rows (25.0%)" in found.evidence
    slow = DEMO.model_copy(update={"gradient_accumulation": 64})
    assert before(slow, facts=few | {"truncated_answers": 0, "eos_supervised": 1.0}) == []  # how many rows is not known


def test_rows_that_will_be_held_out_are_not_trained_on() -> None:
    config = DEMO.model_copy(update={"gradient_accumulation": 4, "epochs": 5.3})
    assert before(config, facts=facts(splits=False)) == before(DEMO.model_copy(update={"epochs": 5.3}))
    (many, few) = before(config, facts=facts(splits=True))
    assert "271 rows" in few.evidence and many.check == "many_epochs"


def test_plain_text_is_learned_whole_and_multi_turn_rows_may_be_cut_after_an_end() -> None:
    assert before(facts=facts(format="text", supervised_share=1.0)) == []
    assert before(facts=facts(truncated=40)) == []


def test_a_trade_off_is_a_note_and_a_loss_for_nothing_a_warning() -> None:
    (trade,), (loss,) = PLANTED["trade-off"][2](), PLANTED["forgets for nothing"][2]()
    assert trade.level == "note" and "trade-off" in trade.why and trade.knobs == {}
    assert loss.level == "warn" and "trade-off" not in loss.why


def test_infinite_first_gradients_in_fp16_are_no_fault() -> None:
    events = healthy_events()
    of_kind(events, "base")[0].update(dtype="float16", device="Tesla T4")
    one_step(0, grad_norm=None)(events)
    assert names(diagnostics.during(DEMO, history(events))) == {"half_precision"}


def test_biases_alone_are_an_adapter() -> None:
    changed = {"b_zero_share": 1.0, "delta_ratio": 0.0, "trained_biases": 90}
    assert with_evaluation(adapter_facts=changed)() == []


def test_an_update_of_unknown_size_is_judged_by_its_drift() -> None:
    """DoRA and replaced modules: LoRA alone does not say how large the update is."""
    unknown = {"b_zero_share": None, "delta_ratio": None}
    assert with_evaluation(adapter_facts=unknown)() == []
    (found,) = with_evaluation(adapter_facts=unknown, drift={"kl": 0.0})()
    assert found.check == "did_nothing" and found.evidence.startswith(
        "The update's size is not known, as it is not plain LoRA"
    )


def test_a_resumed_run_is_judged_by_what_it_did_last() -> None:
    events = healthy_events()
    broken = [step(number, 9.0) for number in range(60, 90, 2)]
    place = events.index(next(event for event in of_kind(events, "step") if event["step"] == 60))
    assert (
        diagnostics.during(DEMO, history([*events[:place], *broken, {"t": 90.0, "kind": "started"}, *events[place:]]))
        == []
    )


def test_the_worst_comes_first() -> None:
    config = DEMO.model_copy(update={"rank": 64, "alpha": 1024, "learning_rate": 1e-2})
    found = before(config, facts=facts(supervised_share=0.0, double_bos=True))
    assert [finding.level for finding in found] == ["bad", "warn", "warn", "warn", "note"]


def test_findings_are_shown_escaped_with_at_most_four_different_changes() -> None:
    nasty = Finding("eos_not_learned", "warn", NASTY, NASTY, NASTY, NASTY, {"rank": 8})
    shown = findings.render([nasty, Finding("learning_rate", "bad", "A.", "B.", "C", "D.")])
    assert "<script>" not in shown and "EOS not learned" in shown and "Breaks the run" in shown
    many = [deepcopy(nasty)] + [Finding("x", "note", "", "", "", "", {"rank": rank}) for rank in (8, 9, 10, 11, 12)]
    assert findings.fixes(many) == [{"rank": 8}, {"rank": 9}, {"rank": 10}, {"rank": 11}]
    assert findings.words({"use_rslora": True, "alpha": 8.0}) == "Use rsLoRA → yes · Alpha → 8"
    assert findings.words({"learning_rate": 2e-4}) == "Learning rate → 0.0002"
    assert findings.words({"target_modules": "all-linear"}) == "Target modules → all-linear"
    assert "2 warnings" in findings.brief([nasty, nasty, many[1]]) and findings.brief(many[1:]) == ""


@pytest.mark.parametrize("odd", [None, {}, [], "odd", 3, {"adapter": None}], ids=str)
def test_damaged_files_are_not_judged_and_stop_nothing(odd: Any) -> None:
    config = DEMO.model_copy(update={"learning_rate": 1e-2})
    for part in healthy_evaluation():
        found = diagnostics.after(config, history(healthy_events()), healthy_evaluation() | {part: odd})
        assert "learning_rate" in names(found)
    for kind in ("data", "base", "step", "eval"):
        events = healthy_events()
        for event in of_kind(events, kind)[:2]:
            for key in event.keys() - {"kind", "t"}:
                event[key] = odd
        assert "learning_rate" in names(diagnostics.after(config, history(events), None))
        for event in of_kind(events, kind):
            for key in event.keys() - {"kind", "t"}:
                del event[key]
        assert names(diagnostics.after(config, history(events), None)) == {"learning_rate"}


@pytest.mark.slow
def test_a_real_run_brings_the_facts_of_its_rows(store: RunStore, bloom: Path) -> None:
    run = train(store, base_model=str(bloom), max_steps=2, max_length=512, bias="lora_only")
    events, _ = run.events()
    told = next(event["facts"] for event in events if event["kind"] == "data")
    assert told["rows"] == 301 and told["eos_supervised"] == 1 and not told["has_template"]
    base = next(event for event in events if event["kind"] == "base")
    assert told["template"] == base["template"]
    assert names(diagnostics.during(run.config(), history(events))) == {"few_steps"}
    assert names(findings.of_run(run, run.history())) == {"few_steps"}
    said = names(diagnostics.after(run.config(), history(events), None))
    assert said == {"few_steps", "learning_rate", "lora_only_biases", "base_without_template"}

    mended = actions.again(store, lambda: None, run.id, {"max_steps": 3})
    again = store.get(mended["runs"][0])
    assert wait_until_ended(again) == "finished" and again.id != run.id
    assert again.config() == run.config().model_copy(update={"max_steps": 3})


def test_the_form_says_that_a_run_does_not_fit_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configs.resolve(preset="experiment-2")
    for size, expected in ((4, {"does_not_fit"}), (80, set())):
        monkeypatch.setattr("qlora_gui.memory.budget.here", lambda gpu="", size=size: card(size))
        assert names(ui_findings.of_form(config, None)) & {"does_not_fit"} == expected
