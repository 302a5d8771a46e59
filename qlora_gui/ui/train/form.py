"""The form of a run: one field a knob of RunConfig, made from its line there, and back to a RunConfig."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from qlora_gui import config as configs
from qlora_gui.config import RunConfig, command_line
from qlora_gui.data import load
from qlora_gui.errors import UserError
from qlora_gui.memory import cpu_guard
from qlora_gui.references import ModelRef
from qlora_gui.runs import several
from qlora_gui.runs.store import RunStore

OWN = "own settings"  # the preset picker's word for a form that no preset filled
_WORDS = {"lr": "learning rate", "rslora": "rsLoRA", "eval": "held-out", "fsdp": "FSDP"}


class Form:
    """The fields: the preset picker, and one component per knob.

    What is often changed is in the open, the rare knobs are folded away by group.
    """

    def __init__(self, config: RunConfig, preset: str):
        values = to_fields(config)
        knobs: dict[str, Any] = {}
        gr.HTML('<h3 class="part">1 · What to train</h3>')
        common = [name for name, field in configs.fields().items() if not configs.extra(field, "rare")]
        first = [name for name in common if configs.extra(configs.fields()[name], "group") == configs.GROUPS[0]]
        with gr.Row(equal_height=False):
            with gr.Column(min_width=200, elem_classes="tight"):
                self.preset = gr.Dropdown(
                    [*configs.preset_names(), OWN],
                    value=preset,
                    label="Preset",
                    info="Fills in the whole form.",
                    elem_id="preset",
                )
                knobs["base_model"] = _field("base_model", values["base_model"])
            with gr.Column(min_width=200, elem_classes="tight"):
                knobs["dataset"] = _field("dataset", values["dataset"])
                kinds = list(load.SUFFIXES)
                self.upload = gr.UploadButton("Upload a data file", file_types=kinds, size="sm", elem_id="upload")
                self.bad_rows = gr.HTML(elem_id="bad-rows")  # faulty rows of the data, named below its field
                self.leave_out = gr.Button("Leave them out", size="sm", visible=False, elem_id="leave-out")
                for name in first:
                    if name not in knobs:
                        knobs[name] = _field(name, values[name])
        gr.HTML('<h3 class="part">2 · How</h3>')
        with gr.Row(equal_height=False):
            for name in common:
                if name not in first:
                    knobs[name] = _field(name, values[name])
        for group in configs.GROUPS:
            rare = _rare(group)
            if rare:
                with gr.Accordion(f"More: {group}", open=False, elem_id="more-" + group.lower().replace(" ", "-")):
                    _rows(rare, values, knobs)
        assert knobs.keys() == configs.fields().keys()
        self.knobs = {name: knobs[name] for name in configs.fields()}

    def inputs(self) -> set[Any]:
        """What a listener takes to see the whole form, as one dict by component."""
        return {self.preset, *self.knobs.values()}

    def values(self, seen: Mapping[Any, Any]) -> dict[str, Any]:
        """Knob values from what a listener was given."""
        return {name: seen[field] for name, field in self.knobs.items()}

    def filled(self, config: RunConfig, preset: str) -> dict[Any, Any]:
        """Updates that put a config into the form."""
        values = to_fields(config)
        return {self.preset: preset} | {field: values[name] for name, field in self.knobs.items()}

    def apply(self, number: int, offered: list[dict[str, Any]]) -> dict[Any, Any]:
        """Updates that put one of the offered changes into the form."""
        knobs = offered[number] if number < len(offered) else {}
        return {self.knobs[name]: value for name, value in knobs.items()} or gr.skip()

    def marks(self, faults: Mapping[str, str]) -> dict[Any, Any]:
        """Updates that put each fault at its field, and the help back at all others."""
        return {field: marked(configs.fields()[name], faults.get(name, "")) for name, field in self.knobs.items()}


def _rare(group: str) -> list[str]:
    """The rare knobs of a group."""
    return [
        name
        for name, field in configs.fields().items()
        if configs.extra(field, "rare") and configs.extra(field, "group") == group
    ]


def _rows(names: list[str], values: Mapping[str, Any], knobs: dict[str, Any]) -> None:
    """Fields, two per row, wide ones alone."""
    while names:
        wide = configs.marked("wide")
        alone = names[0] in wide or len(names) == 1 or names[1] in wide
        here, names = (names[:1], names[1:]) if alone else (names[:2], names[2:])
        with gr.Row(equal_height=False):
            for name in here:
                knobs[name] = _field(name, values[name])


def _field(name: str, value: Any) -> Any:
    return component(name, configs.fields()[name], value, "knob")


def component(name: str, field: FieldInfo, value: Any, prefix: str) -> Any:
    """The component of one field of a settings model: its kind, label and help come from its line there."""
    shared: dict[str, Any] = {"label": label(name), "info": field.description, "elem_id": f"{prefix}-{name}"}
    shared |= {"interactive": True, "min_width": 120}
    kinds = configs.types_of(field)
    if choices := configs.choices(field):
        return gr.Dropdown(list(choices), value=value, **shared)
    if kinds == (bool,):
        return gr.Checkbox(value, **shared)
    if kinds in ((int,), (float,)):
        # Bounds stay with the model: a Number's own would raise an error that is not shown at the field.
        return gr.Number(value, step=1 if kinds == (int,) else _step(field), **shared)
    return gr.Textbox(value, lines=2 if name == "system_prompt" else 1, max_lines=6, **shared)


def _step(field: FieldInfo) -> float:
    default = float(field.default)
    return 1 if default >= 1 else 0.00001 if 0 < default < 0.001 else 0.01


def label(name: str) -> str:
    """`lr_scheduler` -> `Learning rate scheduler`."""
    words = " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


def marked(field: FieldInfo, fault: str) -> Any:
    """The update of a field that has a fault, or "" for none any more."""
    # Gradio escapes it, then makes links of [words](address): no fault shall be one.
    info = f"⚠ {sentence(fault)}".replace("[", "[\u200b") if fault else field.description
    return gr.update(info=info, elem_classes=["fault"] if fault else [])


def sentence(fault: str) -> str:
    """A fault as a sentence: capital and full stop."""
    return fault[0].upper() + fault[1:].rstrip(".") + "."


def to_fields(config: RunConfig) -> dict[str, Any]:
    """The values as the fields hold them: lists as texts with commas."""
    return {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in ((name, getattr(config, name)) for name in RunConfig.model_fields)
    }


def judge(values: Mapping[str, Any], store: RunStore) -> tuple[RunConfig | None, dict[str, str]]:
    """The config of the form, and every fault by knob ("" for faults between knobs); no network, no model."""
    if refused := _refused(values, store):
        return None, refused  # nothing may be revealed of what lies there
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        return None, configs.faults(error) | _missing(values, store)
    faults = _missing(values, store)
    try:
        ModelRef.find(config.base_model, config.revision).check_revision()
    except UserError as error:
        return None, {"": str(error).rstrip(".")} | faults
    try:
        several.check(config, store.has_guests)
    except UserError as error:
        several_processes = "num_processes" if config.num_processes > 1 else "gpu"
        faults["accelerate_config" if config.accelerate_config else several_processes] = str(error).rstrip(".")
    try:
        cpu_guard.check(config)
    except UserError as error:
        faults.setdefault("gpu", str(error).rstrip("."))
    return config, faults


def _missing(values: Mapping[str, Any], store: RunStore) -> dict[str, str]:
    """Files and folders that are not there. What lies on a hub is asked for later, by the preview and at the start."""
    faults: dict[str, str] = {}
    base, data, name = (str(values.get(knob) or "").strip() for knob in ("base_model", "dataset", "name"))
    try:
        if base and not (ref := ModelRef.find(base)).may_be_on_hub:
            ref.check()
    except UserError as error:
        faults["base_model"] = str(error).rstrip(".")
    try:
        if data:
            load.find(data)
    except UserError as error:
        faults["dataset"] = str(error).rstrip(".")
    if store.is_taken(name):
        faults["name"] = f"There is already a run '{name}': choose another name"
    return faults


def _refused(values: Mapping[str, Any], store: RunStore) -> dict[str, str]:
    """The knobs that name files or folders which may not be named on this page."""
    faults = {}
    for knob in configs.marked("path"):
        try:
            store.check_allowed(str(values.get(knob) or "").strip(), knob)
        except UserError as error:
            faults[knob] = str(error).rstrip(".")
    return faults


def field_of(error: UserError, config: RunConfig) -> str:
    """The knob that a sentence is about: the one whose value it names, else ""."""
    message = str(error)
    for knob in ("base_model", "dataset", "chat_template", "name"):
        value = getattr(config, knob)
        if value and (f"'{value}'" in message or (knob == "dataset" and Path(value).name in message)):
            return knob
    return ""


def preset_of(config: RunConfig) -> str:
    """The preset that gives this config, or OWN."""
    return next((name for name in configs.preset_names() if configs.resolve(preset=name) == config), OWN)


def command(config: RunConfig, preset: str, store: RunStore) -> str:
    """The headless command line of the same run."""
    named = preset if preset in configs.preset_names() else None
    line = command_line(config, named)
    if store.root != Path("adapters").absolute():
        line += f" --adapters-dir {shlex.quote(str(store.root))}"
    return line
