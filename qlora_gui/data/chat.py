"""A conversation under a chat template: what is asked for each answer, and the answer as it is learned, to its end mark.

For assistant turn i the context is the rendering of the turns before it with the generation prompt, and the answer is
what the template writes for that turn when it is the newest, up to its end mark. Templates are programs: what they do
is found by rendering short conversations with marks in them (`template_probe`), never by their names.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.data import reasoning as thought
from qlora_gui.data import role_adaptations, special_tokens, template_probe, template_renderer
from qlora_gui.data.special_tokens import Text
from qlora_gui.errors import first_line

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """Assistant turn number `turn` of a conversation: the `context` that asks for it, and what is `learned` after it.

    `turn` is its place in the conversation as the data has it, the first place of those that it covers.

    `covers` counts the turns of the data in it: more than one where the template wanted neighbours joined.
    """

    turn: int
    context: Text
    learned: Text
    covers: int = 1

    @property
    def whole(self) -> Text:
        return self.context + self.learned


@dataclass
class Answers:
    """All of one conversation. `learnable` are those to learn, `lost` says which turns cannot be learned, and why;
    `context_only` counts the turns that are not to be learned; `notes` counts what a template left out or had changed,
    by the names of NOTES.
    """

    learnable: list[Answer] = field(default_factory=list)
    lost: list[tuple[int, str]] = field(default_factory=list)
    context_only: int = 0
    notes: Counter[str] = field(default_factory=Counter)


NOTES = {
    **role_adaptations.NOTES,
    "reasoning_dropped": "answers whose reasoning the chat template does not show, so that it is not learned",
    "reasoning_off": "answers whose reasoning is left out, because thinking is off",
    "marks_kept": "answers with a mark of reasoning in their text, which is learned as it stands",
    "text_dropped": "answers that the chat template shortens; what it leaves out is not learned",
    "tools_not_shown": "conversations whose tools the chat template does not show",
}


class Chat:
    """A tokenizer with the chat template in use, its settings, and what ends an answer under them.

    `template` defaults to the tokenizer's own. `thinking` is on (True), off (False), or as the template does by itself
    (None). `ends` are the tokens that the base's generation_config ends at. `control` lets special tokens that are
    spelled out in messages be what they spell. `whose` says in a message which template it is.
    Raises UserError for a template that has no end or needs too much memory, then and later (`rendering`).
    Afterwards `ends` are all tokens that end an answer, and `stops` the texts that do.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        thinking: bool | None = None,
        ends: Sequence[int] | frozenset[int] = (),
        control: bool = False,
        whose: str = "The chat template",
    ):
        self.whose = whose
        self.tokenizer, self.control, self.thinking = tokenizer, control, thinking
        self.template = template or tokenizer.chat_template
        with template_renderer.bounded(whose):
            self.probe = template_probe.probe(tokenizer, self.template, thinking, frozenset(ends))
        self.ends, self.stops = self.probe.ends, self.probe.stops

    def prompt(self, messages: Turns, tools: Sequence[Any] | None = None) -> Text:
        """A conversation up to where the answer begins. Raises whatever the template raises on turns it dislikes."""
        hidden = special_tokens.Conversation(self._normal(messages, Counter()), self.tokenizer, self.control, tools)
        with template_renderer.bounded(self.whose):
            return hidden.reveal(self._asked(hidden.turns, hidden.tools).asked)

    def answers(self, messages: Turns, tools: Sequence[Any] | None = None) -> Answers:
        """Every assistant turn that is to be learned. Raises whatever the template raises on turns it dislikes."""
        with template_renderer.bounded(self.whose):
            return self._answers(messages, tools)

    def _answers(self, messages: Turns, tools: Sequence[Any] | None) -> Answers:
        out = Answers()
        marked = _marked(self._normal(messages, out.notes))
        hidden = special_tokens.Conversation(marked, self.tokenizer, self.control, tools)
        last = max((place for place, turn in enumerate(marked) if turn["role"] == "assistant"), default=0)
        asked = [{**turn, "place": place} for place, turn in enumerate(hidden.turns[: last + 1])]
        turns, prompt, changed = self._adapted(asked, hidden.tools)
        out.notes.update(changed)
        if hidden.tools and not self._shows(hidden.tools, turns, prompt):
            out.notes["tools_not_shown"] += 1
        for turn in turns:
            if turn["role"] != "assistant":
                continue
            parts = turn.get("joined", [turn])
            places = [part["place"] for part in parts if part.get("learn", True)]
            out.context_only += len(parts) - len(places)
            if not places:
                continue
            if not str(turn.get("content") or "").strip() and not turn.get("tool_calls"):
                out.lost += [(place, "nothing is left of it but its reasoning") for place in places]
                continue
            try:
                lead = _lead(parts)
                before = self._asked(asked[: turn["place"]], hidden.tools)
                context, learned = _after(lead, *self._answer(before, turn, hidden.tools, out.notes))
            except Exception as error:  # templates are programs; they raise what they like
                out.lost += [(place, first_line(error)) for place in places]
                continue
            out.learnable.append(Answer(places[0], hidden.reveal(context), hidden.reveal(learned), len(places)))
        return out

    def _normal(self, messages: Turns, notes: Counter[str]) -> list[dict[str, Any]]:
        """Messages with reasoning in a field of its own, where the template has an opinion on it; none if it is off."""
        splits = self.probe.splits_thought
        return [
            self._apart(message, notes) if splits and message["role"] == "assistant" else dict(message)
            for message in messages
        ]

    def _apart(self, message: Mapping[str, Any], notes: Counter[str]) -> dict[str, Any]:
        """An answer and its reasoning, the latter without the marks around it."""
        turn = thought.split_turn(message, self.probe.opens)
        if self.thinking is False and turn.pop("reasoning_content", "").strip():
            notes["reasoning_off"] += 1
            if str(message.get("reasoning_content") or "").strip():  # the content may begin with another one
                turn = thought.split_turn(turn, self.probe.opens)
                turn.pop("reasoning_content", None)
        content = str(turn.get("content") or "")
        if any(closing in content and closing in self.template for _, closing in thought.MARKS):
            notes["marks_kept"] += 1
            # Set even if empty: templates split an answer at a mark only where the field is absent.
            turn["reasoning_content"] = turn.get("reasoning_content") or ""
        return turn

    def _render(self, turns: Turns, tools: Sequence[Any] | None, generation_prompt: bool = False) -> str:
        shaped = [self.probe.shaped(turn) for turn in turns]
        return self.probe.render(shaped, tools, generation_prompt)

    def _ask(self, turns: Turns, tools: Sequence[Any] | None) -> str:
        if not turns or turns[-1]["role"] in ("system", "assistant"):  # templates may only notice at the answer
            self._render([*turns, {"role": "assistant", "content": template_probe.ANSWER}], tools)
        text = self._render(turns, tools, generation_prompt=True) + self.probe.header
        return thought.closed(text) if self.thinking is False else text

    def _adapted(self, turns: Sequence[dict[str, Any]], tools: Sequence[Any] | None) -> role_adaptations.Adapted:
        """Turns that end with an answer as the template takes them, if it can be with that answer, and its prompt."""

        def ask_and_answer(tried: Turns) -> str:
            self._render(tried, tools)
            return self._ask(tried[:-1], tools)

        if turns[-1].get("tool_calls"):
            with contextlib.suppress(Exception):  # templates are programs; without their last answer others may do
                return role_adaptations.adapt(turns, ask_and_answer)
        return role_adaptations.adapt(turns, lambda tried: self._ask(tried[:-1], tools))

    def _shows(self, tools: Sequence[Any], turns: Turns, prompt: str) -> bool:
        """Whether the tools are in the prompt of these turns; a name that stands there without them is not theirs."""
        try:
            bare = self._ask(turns[:-1], None)
        except Exception:  # templates are programs; this one wants tools
            bare = ""
        return any(prompt.count(name) > bare.count(name) for name in _names(tools))

    def _asked(self, turns: Sequence[dict[str, Any]], tools: Sequence[Any] | None) -> role_adaptations.Adapted:
        """What is asked for after these turns, which is the same at training and at chat time."""
        return role_adaptations.adapt(turns, lambda tried: self._ask(tried, tools))

    def _answer(
        self,
        before: role_adaptations.Adapted,
        turn: Mapping[str, Any],
        tools: Sequence[Any] | None,
        notes: Counter[str],
    ) -> tuple[str, str]:
        """The context of a turn and what is learned after it, rendered."""
        reasoning = str(turn.get("reasoning_content") or "").strip()
        context, whole = before.asked, self._render([*before.turns, turn], tools)
        if whole.startswith(context):
            rest = whole[len(context) :]
            empty = self.probe.empty_thought
            unthought = not reasoning or (reasoning not in rest and not thought.left_open(context))
            if empty and unthought and rest.startswith(empty):  # the template's filler, and not the model's words
                context, rest = context + empty, rest[len(empty) :]
        else:
            rest = whole[len(self._head(before.turns, tools, whole)) :]
        context, rest = thought.completed(context, rest, reasoning)
        content, calls = str(turn.get("content") or "").strip(), _names(turn.get("tool_calls") or [])
        rest = self.probe.to_end_mark(rest, list(filter(None, [reasoning, content, *calls])))
        if missing := [name for name in calls if rest.count(name) < calls.count(name)]:
            raise LookupError(f"the chat template does not show its call of the tool '{missing[0]}'")
        for note, text in (("reasoning_dropped", reasoning), ("text_dropped", content)):
            if not role_adaptations.shows(rest, text):
                notes[note] += 1
        return context, rest

    def _head(self, before: Turns, tools: Sequence[Any] | None, whole: str) -> str:
        """What stands before the answer in `whole`, where that is not how it is asked for. Raises LookupError."""
        mark = template_probe.ANSWER
        while mark in whole:  # somebody wrote it
            mark += mark
        framed = self._render([*before, {"role": "assistant", "content": mark}], tools)
        head = framed[: max(framed.find(mark), 0)]
        if not head or not whole.startswith(head):
            raise LookupError("the chat template does not show where the answer begins")
        return head


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in which answers that nobody asked for, a greeting say, are not learned."""
    asked = not any(message["role"] == "user" for message in messages)  # then a system turn has to do
    for message in messages:
        asked = asked or message["role"] in ("user", "tool")
        if message["role"] == "assistant" and not asked:
            message["learn"] = False
    return messages


def _lead(parts: Turns) -> str:
    """What a turn that was joined of `parts` begins with that is not to be learned, to the paragraph after it.

    Raises LookupError where what is to be learned cannot be separated from the rest, or has no end of its own.
    """
    learns = [bool(part.get("learn", True)) for part in parts]
    if all(learns):
        return ""
    first = learns.index(True)
    if not all(learns[first:]) or any(part.get("reasoning_content") for part in parts):
        raise LookupError("the chat template wants it joined with a neighbouring answer that is not to be learned")
    texts = [str(part["content"]) for part in parts[:first] if part.get("content")]
    return "".join(f"{text}\n\n" for text in texts)


def _after(lead: str, context: str, learned: str) -> tuple[str, str]:
    """Context and answer where `lead` begins the answer and is context. Raises LookupError where it is not shown."""
    if not lead:
        return context, learned
    before, found, rest = learned.partition(lead.lstrip())  # templates strip what a turn begins with
    if not found:
        raise LookupError("the chat template does not show where the answer begins")
    return context + before + found, rest


def _names(tools: Sequence[Any]) -> list[str]:
    return [str((tool.get("function") or tool).get("name", "")) for tool in tools if isinstance(tool, Mapping)]
