"""The optional LLM judge on the page: off until an endpoint is named; it judges the answers that people voted on."""

from collections.abc import Callable, Iterator

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.preferences import llm_judge
from qlora_gui.preferences.votes import VoteLog
from qlora_gui.ui.compare import vote_views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import RAW


class LlmJudgePanel:
    """Its fields and its button. What is judged is kept as it comes.

    `pinned` lets no other judge be asked than the one that the owner named in the environment.
    """

    def __init__(self, log: VoteLog, pinned: bool):
        self.log, self.pinned = log, pinned
        with gr.Accordion("A second opinion: let an LLM judge", open=False, elem_id="llm-judge"):
            gr.HTML(
                html.hint(
                    "Off unless you use it. It sends the prompts and answers above to the endpoint you name, each pair in "
                    "both orders; where the orders disagree it is a tie. Its votes are counted separately from yours. The key is "
                    f"taken from {llm_judge.KEY} in this program's environment, never from the page."
                )
            )
            with gr.Row(equal_height=False):
                self.url = gr.Textbox(
                    label="OpenAI-compatible endpoint", placeholder="http://127.0.0.1:8000/v1", elem_id="llm-url"
                )
                self.model = gr.Textbox(
                    label="Model", info="Must not be one of the compared models.", elem_id="llm-model"
                )
            self.ask = gr.Button("Let it judge", size="sm", elem_id="llm-ask")
            self.status = gr.HTML(elem_id="llm-status")

    @streams
    def judged(self, url: str, model: str, picked: list[str]) -> Iterator[str]:
        """Have all pairs judged that this judge has not seen, and report how far it is."""
        names = ["base", *picked]
        votes = [vote for group in vote_views.by_columns(self.log.read(), names).values() for vote in group]
        judge = llm_judge.Judge((url or "").strip(), (model or "").strip())
        try:
            llm_judge.check(judge, names)
            if self.pinned and not llm_judge.is_pinned(judge):
                raise UserError(f"Only the judge that the owner named in {llm_judge.PIN} may be asked from this page.")
            waiting = len(llm_judge.unjudged(judge, votes))
            if not waiting:
                yield html.hint("There is nothing to judge: vote first. Pairs already judged are kept.")
                return
            yield html.hint(f"0 of {waiting} pairs judged…")
            for now in llm_judge.judge_votes(judge, votes, self.log.add):
                yield html.hint(
                    f"{now.done} of {now.total} pairs judged; both orders agreed on {now.agreed} ({now.agreement:.0%})"
                )
        except UserError as error:
            yield html.faults([str(error)])

    def wire(self, chosen: gr.Dropdown, results: gr.HTML, tally: Callable[[list[str]], str]) -> None:
        """Connect the button. `tally` gives what all votes on some adapters say, as far as it may be shown."""
        self.ask.click(
            self.judged,
            [self.url, self.model, chosen],
            self.status,
            concurrency_id="llm-judge",
            concurrency_limit=1,
            trigger_mode="once",
            **RAW,
        ).then(tally, chosen, results, **RAW)  # by then other adapters may be chosen
