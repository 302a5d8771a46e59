"""Whether an adapter belongs to a base: by fingerprint where its run recorded it, else by name, or because a person says so."""

import contextlib
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.files import json_object
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.models import base as bases
from qlora_gui.runs import base_names

_OWN = "compare it with its own base, or name one that it fits (--base, or Base in the page)"
_NAMED = 3  # tokens by name in a refusal


def check(base: CleanBase, adapter: Adapter, chosen: bool) -> str:
    """What the column's proof says of the name, "" where there is nothing to say.

    `chosen` is a base that a person named: then name and fingerprint decide nothing, and shapes and vocabulary do.
    Raises UserError where an adapter does not belong to the base, as far as its folder says; shapes are checked later.
    """
    fingerprint, located = adapter.trained_on.get("fingerprint"), base.located
    if fingerprint == located.fingerprint:
        return ""
    named = str(adapter.trained_on.get("name") or adapter.config.get("base_model_name_or_path") or "")
    if fingerprint is not None and not chosen:
        raise UserError(
            f"The adapter '{adapter.name}' was trained on another base, {named} ({fingerprint}), "
            f"not on {located.name} ({located.fingerprint}): {_OWN}."
        )
    how = "the same name" if named in ("", located.path) else base_names.relation(named, located.name)
    if how is None and not chosen:
        raise UserError(f"The adapter '{adapter.name}' was trained on {named}, not on {located.name}: {_OWN}.")
    vocabulary, lacking = _check_vocabulary(base, adapter)
    if not chosen and named in ("", located.path, located.name):
        return f"{named or located.name}; all shapes fit{vocabulary}" if lacking else ""
    why = "it was chosen" if chosen else f"that is {how}"
    return f"{named or 'none'}; on {located.name} because {why}; all shapes fit{vocabulary}"


def _check_vocabulary(base: CleanBase, adapter: Adapter) -> tuple[str, int]:
    """What to say of the tokenizer beside an adapter, and how many tokens it has that the base's lacks.

    Raises UserError where it gives other ids than the base's, or where the adapter's chat needs a token that the base's
    lacks: its prompts are read by the base's tokenizer, to which that is plain text.
    """
    file = adapter.folder / "tokenizer.json"
    known = file.is_file()
    bases.check_tokenizer_size(adapter.folder)
    try:
        theirs: dict[str, int] = (
            Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True) if known else _listed(adapter.folder)
        )
    except Exception as error:  # the library raises plain Exceptions for a file that it cannot read
        raise UserError(f"The tokenizer.json of the adapter '{adapter.folder}' is damaged: {error}.") from None
    ours: dict[str, int] = base.tokenizer.get_vocab()
    other = sum(ours.get(token, number) != number for token, number in theirs.items())
    if other:
        raise UserError(
            f"The adapter '{adapter.name}' does not fit {base.located.name}: its tokenizer gives {other:,} of "
            f"{len(theirs):,} tokens another number, so it was trained on another vocabulary."
        )
    lacking = {token: theirs[token] for token in sorted(theirs, key=theirs.__getitem__) if token not in ours}
    if needed := _needed(lacking, base, adapter):
        _refuse(base, adapter, needed)
    remark = ", so does the vocabulary" if known else ", its vocabulary is not known"
    s = "s" * (len(lacking) != 1)
    return remark + (f", but for {len(lacking):,} token{s} that the base's tokenizer lacks" if lacking else ""), len(
        lacking
    )


def _needed(lacking: dict[str, int], base: CleanBase, adapter: Adapter) -> dict[str, int]:
    """Those of the tokens that the adapter's own template writes, or that end its answers."""
    if not lacking:
        return {}
    template = adapter.template or ""
    settings = json_object(adapter.folder / "tokenizer_config.json")
    written = template + _rendered(base, adapter)
    named = {_spelling(settings.get("eos_token"))}
    if "bos_token" in template:
        named.add(_spelling(settings.get("bos_token")))
    return {token: number for token, number in lacking.items() if token in named or token in written}


def _rendered(base: CleanBase, adapter: Adapter) -> str:
    """A short chat rendered by the adapter's template: some build their marks from parts, as '<|' + role + '|>'."""
    turns = [{"role": role, "content": "."} for role in ("user", "assistant", "user")]
    text, whose = "", f"The chat template of the adapter '{adapter.name}'"
    for messages in (turns, [{"role": "system", "content": "."}, *turns]) if adapter.template else ():
        # Templates are programs; they raise what they like on turns they dislike.
        with contextlib.suppress(Exception):
            text += Chat(base.tokenizer, adapter.template, whose=whose).prompt(messages).text
    return text


def _refuse(base: CleanBase, adapter: Adapter, needed: dict[str, int]) -> None:
    """Raise the UserError for tokens that an adapter's chat needs and the base's tokenizer lacks."""
    first = ", ".join(list(needed)[:_NAMED]) + (f" and {len(needed) - _NAMED:,} more" if len(needed) > _NAMED else "")
    many = len(needed) > 1
    tokens = f"the token{'s' * many} {first}, which the tokenizer of {base.located.name} lacks"
    helps = "compare it on a copy of that base whose folder has the adapter's tokenizer files"
    if any(number >= _embeddings(base.model) for number in needed.values()):
        tokens += f" and the base has no embedding{'s' * many} for"
        helps = "compare it on the base with the larger vocabulary that it was trained on"
    raise UserError(
        f"The adapter '{adapter.name}' was trained with {tokens}, so its chats would be read as other tokens: {helps} "
        "(--base, or Base in the page)."
    )


def _listed(folder: Path) -> dict[str, int]:
    """The added tokens that a folder without a tokenizer.json names, by their spelling."""
    listed = json_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    ids = {
        _spelling(token): int(number)
        for number, token in (listed if isinstance(listed, dict) else {}).items()
        if number.isdecimal()
    }
    ids |= {token: number for token, number in json_object(folder / "added_tokens.json").items() if type(number) is int}
    return {token: number for token, number in ids.items() if token}


def _spelling(token: Any) -> str:
    """A token as a tokenizer's config gives it: its text, or an object with that; "" for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
