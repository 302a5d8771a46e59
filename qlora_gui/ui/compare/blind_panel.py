"""The components of blind votes: the list of prompts, the buttons to vote with and their keys, the results."""

from typing import Any

import gradio as gr

from qlora_gui.preferences.votes import VoteLog
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


class BlindPanel:
    """The components. The bar sticks to the bottom of what it lies in, so it lies beside the columns, in no box."""

    def __init__(self, log: VoteLog, pinned: bool):
        with gr.Column(visible=False, elem_classes=["startbar", "tight"], elem_id="blind-bar") as self.bar:
            self.progress = gr.HTML(elem_id="blind-progress")
            with gr.Row(elem_classes=["tight", "actions"]):
                self._draw_buttons()
        with gr.Column(visible=False, elem_classes="tight", elem_id="blind-panel") as self.box:
            self.trials = gr.HTML(elem_id="rounds")
            self.results = gr.HTML(elem_id="votes")
            self.saving = vote_views.SaveButtons(log)
            with gr.Column(elem_classes="tight") as self.setup:
                self._draw_setup()
                self.judge = llm_judge_panel.LlmJudgePanel(log, pinned)
        self.at, self.stamp, self.news = gr.State(-1), gr.State(None), gr.State(None)

    def _draw_buttons(self) -> None:
        self.places = [
            gr.Button(f"Answer {place + 1}", variant="primary", elem_id=f"vote-{place + 1}", **chat.SMALL)
            for place in range(columns.MOST)
        ]
        self.tie = gr.Button("Tie (T)", variant="primary", elem_id="vote-tie", **chat.SMALL)
        self.bad = gr.Button("All bad (B)", variant="primary", elem_id="vote-bad", **chat.SMALL)
        self.undo = gr.Button("Undo (U)", elem_id="undo", **chat.SMALL)
        self.retry = gr.Button("Retry", elem_id="blind-retry", **chat.SMALL)
        self.reveal = gr.Button("Reveal and end", elem_id="reveal", **chat.SMALL)
        self.go_on = gr.Button("Go on", elem_id="go-on", **chat.SMALL)

    def _draw_setup(self) -> None:
        self.prompts = gr.Textbox(
            label="Prompts to judge, one per line",
            info="Separate longer ones with a line of ---. All are answered ahead, so judging never has to wait.",
            lines=4,
            max_lines=10,
            elem_id="blind-prompts",
        )
        with gr.Row(elem_classes=["tight", "actions"]):
            self.start = gr.Button("Start", variant="primary", elem_id="blind-start", **chat.SMALL)
            self.held_out = gr.Button(f"Add {EXAMPLES} held-out examples", elem_id="blind-examples", **chat.SMALL)
        self.aa = gr.Checkbox(label="A/A: the base against itself, to test the judge", elem_id="aa")
        self.status = gr.HTML(elem_id="blind-status")

    def drawn(self) -> list[Any]:
        """What a draw may change."""
        buttons = [*self.places, self.tie, self.bad, self.undo, self.retry, self.reveal, self.go_on]
        below = [self.setup, self.status, self.results, self.trials, self.saving.row, self.at, self.stamp]
        return [self.bar, self.progress, *buttons, *below]
