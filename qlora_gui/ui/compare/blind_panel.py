"""The components of blind votes: the list of prompts, the buttons to vote with and their keys, the results."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.ui.compare import chat, columns, llm_judge_panel, vote_views

EXAMPLES = 10
# Keys press the buttons: not while somebody types, not when a key is held down, and not after the reveal.
KEYS = """() => {
  if (window.blindKeys) return;
  window.blindKeys = true;
  document.addEventListener('keydown', (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const at = event.target;
    if (at.isContentEditable || (at.matches && at.matches('textarea, select, input:not([type=checkbox])'))) return;
    const key = event.key.toLowerCase();
    const id = {t: 'vote-tie', b: 'vote-bad', u: 'undo'}[key] || (/^[1-6]$/.test(key) ? 'vote-' + key : '');
    const button = id && document.getElementById(id), tie = document.getElementById('vote-tie');
    if (!button || button.disabled || !button.getClientRects().length || !tie.getClientRects().length) return;
    event.preventDefault();
    button.click();
  });
}"""


@dataclass
class Panel:
    """The components of blind voting."""

    box: gr.Column
    bar: gr.Column
    told: gr.HTML
    places: list[gr.Button]
    tie: gr.Button
    bad: gr.Button
    undo: gr.Button
    retry: gr.Button
    reveal: gr.Button
    go_on: gr.Button
    setup: gr.Column
    status: gr.HTML
    prompts: gr.Textbox
    start: gr.Button
    held_out: gr.Button
    aa: gr.Checkbox
    results: gr.HTML
    rounds: gr.HTML
    saving: vote_views.Buttons
    judge: llm_judge_panel.Panel
    at: gr.State
    stamp: gr.State
    news: gr.State

    def drawn(self) -> list[Any]:
        """What a draw may change."""
        return [
            *(self.bar, self.told, *self.places, self.tie, self.bad, self.undo, self.retry, self.reveal, self.go_on),
            *(self.setup, self.status, self.results, self.rounds, self.saving.row, self.at, self.stamp),
        ]


def build() -> Panel:
    """Draw the panel. The bar sticks to the bottom of what it lies in, so it lies beside the columns, in no box."""
    with gr.Column(visible=False, elem_classes=["startbar", "tight"], elem_id="blind-bar") as bar:
        told = gr.HTML(elem_id="blind-told")
        with gr.Row(elem_classes=["tight", "actions"]):
            places = [
                gr.Button(f"Answer {place + 1}", variant="primary", elem_id=f"vote-{place + 1}", **chat.SMALL)
                for place in range(columns.MOST)
            ]
            tie = gr.Button("Tie (T)", variant="primary", elem_id="vote-tie", **chat.SMALL)
            bad = gr.Button("All bad (B)", variant="primary", elem_id="vote-bad", **chat.SMALL)
            undo = gr.Button("Undo (U)", elem_id="undo", **chat.SMALL)
            retry = gr.Button("Retry", elem_id="blind-retry", **chat.SMALL)
            reveal = gr.Button("Reveal and end", elem_id="reveal", **chat.SMALL)
            go_on = gr.Button("Go on", elem_id="go-on", **chat.SMALL)
    with gr.Column(visible=False, elem_classes="tight", elem_id="blind-panel") as box:
        rounds = gr.HTML(elem_id="rounds")
        results = gr.HTML(elem_id="votes")
        buttons = vote_views.build()
        with gr.Column(elem_classes="tight") as setup:
            prompts = gr.Textbox(
                label="Prompts to judge, one a line",
                info="Longer ones: with a line of --- between every two. All are answered ahead, so judging does not wait.",
                lines=4,
                max_lines=10,
                elem_id="blind-prompts",
            )
            with gr.Row(elem_classes=["tight", "actions"]):
                start = gr.Button("Start", variant="primary", elem_id="blind-start", **chat.SMALL)
                held_out = gr.Button(f"Add {EXAMPLES} held-out examples", elem_id="blind-examples", **chat.SMALL)
            aa = gr.Checkbox(label="A/A: the base against itself, to test the judge", elem_id="aa")
            status = gr.HTML(elem_id="blind-status")
            judge = llm_judge_panel.build()
    parts = (told, places, tie, bad, undo, retry, reveal, go_on, setup, status, prompts, start, held_out, aa)
    return Panel(box, bar, *parts, results, rounds, buttons, judge, gr.State(-1), gr.State(None), gr.State(None))
