"""To the hub: a finished run's adapter or an export of it, pushed to a repository on the Hugging Face Hub."""

from typing import Any

import gradio as gr

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.export import hub_target, job, push_job
from qlora_gui.export.push_job import Push
from qlora_gui.runs.child_job import State
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import RAW

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}
_ADAPTER = ("The adapter itself", push_job.ADAPTER)
_TOKEN = "For this one push; it is kept nowhere."
_GUESTS = (
    "This page has guests: it uses nobody's login, and pushes only with a token that is typed here. It is kept nowhere."
)
_WITHOUT_TOKEN = "This page has guests, so the login of this machine is not used: type a token of your own."


class HubPanel:
    """The group in *Take along*. A page with guests never uses the owner's login, and does not say whose it is."""

    def __init__(self, store: RunStore):
        self._store = store
        with gr.Accordion("Hugging Face Hub", open=False, elem_id="hub") as self.box:
            with gr.Row():
                self.what = gr.Dropdown([_ADAPTER], value=_ADAPTER[1], label="Push", elem_id="hub-what")
                self.repo = gr.Textbox(
                    label="Repository", placeholder="owner/name", max_lines=1, elem_id="hub-repo", min_width=200
                )
                self.token = gr.Textbox(
                    label="Token",
                    info=_GUESTS if store.has_guests else _TOKEN,
                    placeholder="hf_…" if store.has_guests else "empty: the login of this machine",
                    type="password",
                    max_lines=1,
                    elem_id="hub-token",
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
                )
            self.public = gr.Checkbox(False, label="Public: everybody may read it", elem_id="hub-public")
            self.account = gr.HTML(elem_id="hub-account")
            with gr.Row(elem_classes=["tight", "actions"]):
                self.begin = gr.Button("Push", elem_id="hub-push", **_SMALL)
                self.whose = gr.Button("Whose account?", elem_id="hub-whose", **_SMALL)
            with gr.Column(visible=False, elem_classes="tight", elem_id="hub-confirm") as self.confirm:
                self.question = gr.HTML(elem_id="hub-question")
                with gr.Row(elem_classes=["tight", "actions"]):
                    self.sure = gr.Button("Push there", variant="stop", elem_id="hub-sure", **_SMALL)
                    self.keep = gr.Button("Cancel", elem_id="hub-cancel", **_SMALL)
            self.status = gr.HTML(elem_id="hub-status")
        self.shown = gr.State("")  # the run that the fields were filled in for
        self.agreed = gr.State(None)  # the run and what was asked about it: never the token

    @property
    def outputs(self) -> list[Any]:
        """What `updates` may change."""
        return [self.what, self.begin, self.status]

    def updates(self, run: Run, made: list[job.Made]) -> dict[Any, Any]:
        """Show what can be pushed of the chosen run, and what was."""
        working = push_job.state(run)
        choices = [_ADAPTER, *((f"The export {one.folder.name}", one.folder.name) for one in made)]
        return {
            self.what: gr.update(choices=choices),
            self.begin: gr.update(interactive=not working.running),
            self.status: status(working, push_job.pushes(run)),
        }

    def wire(self, chosen: Any, detailing: dict[str, Any], changed: Any) -> None:
        """Connect the events; `changed` is the last of those that follow another choice."""
        for asked in (self.box.expand, self.whose.click):
            asked(self.who, self.token, self.account, **RAW)
        given = [chosen, self.what, self.repo, self.public, self.token]
        asks = [self.confirm, self.question, self.sure, self.agreed, self.token]
        self.begin.click(self.press, given, asks, **RAW).then(**detailing)
        self.sure.click(self.press_again, [*given, self.agreed], asks, **RAW).then(**detailing)
        self.keep.click(self.put_aside, None, asks, **RAW)
        changed.then(self.begin_anew, [chosen, self.shown], [*asks, self.what, self.shown], **RAW)

    def who(self, typed: Any) -> str:
        """Whose account it would be; asked when the group is unfolded, or by a press."""
        if self._store.has_guests and not typed:
            return html.hint(_WITHOUT_TOKEN)
        try:
            name = hub_target.whoami(self._token(typed))
            return html.hint(f"Logged in as {name}" + (", by the token typed here." if typed else "."))
        except UserError as error:
            return html.hint(str(error))

    def _token(self, typed: Any) -> str:
        """The token typed, else that of this machine's login, which guests never get. Raises UserError."""
        token = str(typed or "").strip()
        if self._store.has_guests and not token:
            raise UserError(_WITHOUT_TOKEN)
        return token or hub.login_token()

    def press(self, picked: list[str], what: Any, repo: Any, public: Any, typed: Any) -> dict[Any, Any]:
        """Push, or ask first."""
        try:
            if not picked:
                raise UserError("Choose a run first.")
            run, token = self._store.get(picked[0]), self._token(typed)
            target = hub_target.look(str(repo or "").strip(), token)
            asked = Push(target.repo, _folder(run, what), bool(public), target.seen)
            if not (question := hub_target.question(target, asked.public)):
                push_job.start(run, asked, token)
                return self.put_aside()
        except UserError as error:
            actions.warn(error)
            return self._nothing()
        return {
            self.confirm: gr.update(visible=True),
            self.question: html.note(question, bad=True),
            self.sure: gr.update(value=f"Push to the {target.seen} repository"),
            self.agreed: (run.id, asked),
            self.token: gr.skip(),
        }

    def press_again(
        self, picked: list[str], what: Any, repo: Any, public: Any, typed: Any, agreed: tuple[str, Push] | None
    ) -> dict[Any, Any]:
        """Push what was asked about, where the fields still say the same, and the repository is still as it was."""
        try:
            if agreed is None or picked[:1] != [agreed[0]]:
                raise UserError("Another run is chosen now: press Push again.")
            run, asked = self._store.get(agreed[0]), agreed[1]
            if Push(str(repo or "").strip(), _folder(run, what), bool(public), asked.seen) != asked:
                raise UserError("The fields say something else than what was asked about: press Push again.")
            push_job.start(run, asked, self._token(typed))
        except UserError as error:
            actions.warn(error)
        return self.put_aside()

    def put_aside(self) -> dict[Any, Any]:
        """No question, and no token in the page any more."""
        return self._nothing() | {self.token: ""}

    def begin_anew(self, picked: list[str], shown: str) -> Any:
        """As it is for a run that was just chosen; a change of the choices alone leaves what was typed."""
        now = "".join(picked[:1])
        return gr.skip() if now == shown else self.put_aside() | {self.what: _ADAPTER[1], self.shown: now}

    def _nothing(self) -> dict[Any, Any]:
        hidden = gr.update(visible=False)
        return {self.confirm: hidden, self.question: "", self.sure: gr.skip(), self.agreed: None, self.token: gr.skip()}


def _folder(run: Run, what: Any) -> str:
    """The folder of an export of the run by its name, "" for the adapter. Raises UserError."""
    if what == push_job.ADAPTER:
        return ""
    found = next((one.folder for one in job.made(run) if one.folder.name == what), None)
    if found is None:
        raise UserError(f"The run '{run.id}' has no export '{str(what)[:100]}' any more: choose another.")
    return str(found.absolute())


def status(working: State, pushes: list[push_job.Pushed]) -> str:
    """The push that runs or failed, and those that were made, the newest first."""
    text = ""
    if working.fault:
        text = html.note(f"Not pushed: {working.fault}", bad=True)
    elif working.running:
        text = html.hint(f"Pushing: {working.text}") + html.bar(working.share)
    return text + "".join(map(_pushed, reversed(pushes)))


def _pushed(one: push_job.Pushed) -> str:
    link = html.escaped(one.url)
    kind = "private" if one.private else "public"
    return (
        f'<div class="note good"><p>Pushed to <a href="{link}" target="_blank" rel="noopener noreferrer">{link}</a> '
        f'({kind})</p><p class="hint">{html.escaped(one.what)} {html.escaped(one.remarks)}</p></div>'
    )
