"""Votes saved from the page: LLM Comparator's JSON, one file a pair, and CSV; made in the browser, nothing stays on disk."""

import json
import re
from dataclasses import dataclass

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.preferences import export
from qlora_gui.preferences.votes import HUMAN, Vote, VoteLog
from qlora_gui.ui import actions
from qlora_gui.ui.compare import vote_views
from qlora_gui.ui.theme import RAW

_SAVE = """(files) => {
  for (const file of JSON.parse(files || '[]')) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([file.text], {type: file.type}));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}"""


@dataclass
class Buttons:
    """The two buttons, and the hidden field that carries what they made to the browser."""

    row: gr.Row
    as_json: gr.Button
    as_csv: gr.Button
    files: gr.Textbox


def build() -> Buttons:
    """Draw the buttons."""
    with gr.Row(visible=False, elem_classes=["tight", "actions"]) as row:
        as_json = gr.Button("Save for LLM Comparator (JSON)", size="sm", elem_id="save-json")
        as_csv = gr.Button("Save votes (CSV)", size="sm", elem_id="save-csv")
    return Buttons(row, as_json, as_csv, gr.Textbox(visible=False))


def wire(buttons: Buttons, log: VoteLog, chosen: gr.Dropdown) -> None:
    """Each button makes its files from the votes that are shown."""

    def votes(picked: list[str]) -> list[Vote]:
        shown = vote_views.of_columns(log.read(), ["base", *picked])
        return [vote for group in shown.values() for vote in group]

    def save_json(picked: list[str]) -> str:
        try:
            return json.dumps(comparator_files([vote for vote in votes(picked) if vote.by == HUMAN]))
        except UserError as error:
            actions.warn(error)
            return ""

    def save_csv(picked: list[str]) -> str:
        found = votes(picked)
        if not found:
            actions.warn("There are no votes on these columns to save: judge some prompts first.")
            return ""
        return json.dumps([{"name": "votes.csv", "type": "text/csv", "text": export.as_csv(found)}])

    for button, made in ((buttons.as_json, save_json), (buttons.as_csv, save_csv)):
        button.click(made, chosen, buttons.files, **RAW).then(None, buttons.files, None, js=_SAVE, **RAW)


def comparator_files(votes: list[Vote]) -> list[dict[str, str]]:
    """One file for every adapter that was voted on against the base. Raises UserError when there is none."""
    pairs = dict.fromkeys((vote.columns[0], other) for vote in votes if not vote.aa for other in vote.columns[1:])
    if not pairs:
        raise UserError("There are no votes on these columns to save: judge some prompts first.")
    return [
        {
            "name": re.sub(r"[^\w.-]+", "-", f"{adapter.name}-against-{base.name}.json"),
            "type": "application/json",
            "text": export.as_json(votes, adapter, base),
        }
        for base, adapter in pairs
    ]
