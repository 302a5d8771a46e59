"""An adapter merged into its base, with everything beside it, and held against what was trained.

Made aside and moved into place when it is whole, so that a killed export leaves nothing that looks like a model.
"""

import gc
import json
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import filelock
import torch
from transformers.utils import logging as chatter

from qlora_gui import locks
from qlora_gui.data.chat import Chat
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError, first_line
from qlora_gui.evaluation import job as evaluations
from qlora_gui.export import folder as companions
from qlora_gui.export import job, merge, modelfile, peft_merge, proof
from qlora_gui.export.gguf import file as gguf_file
from qlora_gui.export.gguf import quantize
from qlora_gui.export.proof import Proof
from qlora_gui.formatting import amount, counted
from qlora_gui.inference import adapter_file, clean_base
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.inference.beyond_lora import Beyond
from qlora_gui.inference.client import base_of
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.protocol import Conversation
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.models import chats, supported
from qlora_gui.models import device as devices
from qlora_gui.runs import changes, disk_reserve, fetched
from qlora_gui.runs.child_job import Count, Say
from qlora_gui.runs.event_text import loss_of
from qlora_gui.runs.events import Data, Eval
from qlora_gui.runs.fingerprints import config_of
from qlora_gui.runs.store import Run
from qlora_gui.runs.training_rows import rows_of
from qlora_gui.system import files

_NOT_COMPARED = "Not compared with the trained model"
_SPARE = 64 << 20  # bytes on the disk beside the weights: tokenizer, card


def export(
    folder: Path,
    settings: job.Settings,
    say: Say,
    progress: Count,
    base: str | None = None,
    revision: str = "",
    prompts: Sequence[Conversation] = (),
) -> job.Made:
    """Export one adapter; `base` is another base than its folder names, or the same by another name.

    `prompts` take the place of held-out rows in the comparison with the trained model, as far as the settings' `rows` go.

    Returns what lies in the new folder. Raises UserError.
    """
    chatter.disable_progress_bar()
    folder = folder.absolute()
    out = job.folder_of(Run(folder), settings).absolute()
    with locks.reading([folder], "an export"), _aside(out) as part:
        say("Finding the base model")
        arguments = base_of([folder], base, revision)
        located = bases.locate(arguments["base_model"], arguments.get("revision", ""), say)
        supported.check(located.path)
        adapter = adapter_file.read(folder)
        _check_stored(located, settings)
        _check_onto(adapter, settings)
        if settings.kind == "gguf":
            quantize.check(settings.type, adapter.name)
        _check_base(adapter, located, chosen=base is not None)
        chat = _chat(adapter, located)
        work = _Work(part, folder, located, adapter, chat, settings, arguments, say, progress, prompts[: settings.rows])
        remark = _KINDS[settings.kind](work)
        say("Comparing with the trained model")
        _record(work, _proof(work), remark)
    result = job.read(out)
    assert result is not None
    say(result.proof)
    return result


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place at the end, if all went well.

    Raises UserError where `out` is there, or another process is making it.
    """
    if out.exists():
        raise UserError(f"The folder '{out}' is there already: delete it, or name another with --out.")
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locks.Lock(out.with_name(f".{out.name}.lock")):
            shutil.rmtree(part, ignore_errors=True)  # what a killed export left
            part.mkdir()
            try:
                yield part
                files.replace(part, out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except filelock.Timeout:
        raise UserError(f"The folder '{out}' is being made by another process: wait for it.") from None
    except OSError as error:
        full = disk_reserve.why_not_written(out.parent, error, "export again")
        ours = error.filename is None or str(error.filename).startswith(str(out.parent))
        what = f"The export cannot be written to '{out}'" if ours else "The export needs a file that cannot be read"
        raise UserError(full or f"{what}: {error.strerror or error} ({error.filename}).") from error


def _check_stored(located: bases.Base, settings: job.Settings) -> None:
    if (
        settings.kind != "gguf-lora"
        and settings.onto == "base"
        and config_of(Path(located.path)).get("quantization_config")
    ):
        raise UserError(
            f"The base '{located.name}' is stored quantized, so there are no 16-bit weights to merge onto: merge onto the trained "
            "weights (--onto trained), or name the base in 16 bits with --base."
        )


def _check_onto(adapter: Adapter, settings: job.Settings) -> None:
    """Raise UserError for what is no sum with the 4-bit values: before the base is loaded for it."""
    if settings.kind != "gguf-lora" and settings.onto == "trained" and adapter.beyond:
        raise UserError(
            f"The adapter '{adapter.name}' cannot be merged onto the trained weights, as {adapter.beyond.reason}, and PEFT rounds its "
            "merge to 4 bits again: merge it onto the base's own weights (--onto base)."
        )


def _check_base(adapter: Adapter, located: bases.Base, chosen: bool) -> None:
    fingerprint = adapter.trained_on.get("fingerprint")
    if not chosen and fingerprint not in (None, located.fingerprint):
        raise UserError(
            f"The adapter '{adapter.name}' was trained on another base ({fingerprint}) than '{located.name}' is now "
            f"({located.fingerprint}): name its own base with --base."
        )


def _chat(adapter: Adapter, located: bases.Base) -> Chat:
    """The chat that the adapter was trained with: its own tokenizer, template and thinking, where its folder has them."""
    own = (adapter.folder / "tokenizer.json").is_file()
    tokenizer = bases.load_tokenizer(adapter.folder if own else located.path, or_first=True)
    template = adapter.template or tokenizer.chat_template
    return Chat(tokenizer, template, adapter.thinking, chats.base_ends(located.path))


@dataclass(frozen=True)
class _Work:
    """One export on its way: made in `part`, of an adapter on a base, with the chat that it was trained with."""

    part: Path
    folder: Path
    located: bases.Base
    adapter: Adapter
    chat: Chat
    settings: job.Settings
    arguments: dict[str, Any]
    say: Say
    progress: Count
    prompts: Sequence[Conversation] = ()

    @property
    def base(self) -> Path:
        return Path(self.located.path)

    @property
    def file(self) -> Path:
        """The GGUF file of this export."""
        what = "lora" if self.settings.kind == "gguf-lora" else self.settings.type
        return self.part / f"{self.adapter.name}-{what}.gguf"

    @property
    def about(self) -> dict[str, str]:
        """Names, for a GGUF file."""
        return {"name": self.adapter.name, "base": self.base_name, "loras": " ".join(self.adapter.loras)}

    @property
    def base_name(self) -> str:
        """The base as what leaves this machine calls it: a folder without the path to it."""
        return self.located.name if self.located.revision else Path(self.located.name).name


def _merged(work: _Work) -> str:
    """The merged weights and all that lies beside them but the card. Returns a remark for the card, as the other kinds do."""
    dtype = merge.DTYPES[work.settings.dtype]
    packed, untied, remark = _packed(work), False, ""
    try:
        merged = merge.plan(work.base, work.adapter, dtype, packed)
        _check_room(work.part, merged.bytes)
        work.say(_merging(work.adapter))
        merge.write(merged, work.part, work.progress)
        untied = merged.untied
    except merge.NotPlain as why:
        if packed:
            raise UserError(f"This adapter cannot be merged onto the trained weights: {why}.") from None
        untied, remark = _merged_by_peft(work, str(why), work.part, dtype)
    companions.fill(work.part, work.located, work.chat, str(dtype).removeprefix("torch."), untied)
    return remark


def _merged_by_peft(work: _Work, why: str, out: Path, dtype: torch.dtype, beside: float = 0) -> tuple[bool, str]:
    """PEFT's merge in `out`; `beside` is what else is written, as a share of it. Returns whether the head is untied now, and a remark."""
    work.say(f"Merging by PEFT on the whole base, as {why}")
    _check_room(work.part, int((1 + beside) * peft_merge.size(work.base, work.folder)))
    untied = peft_merge.merge(work.base, work.adapter, out, dtype)
    own = " Head and embedding shared weights, and have their own now." * untied
    return untied, f"Merged by PEFT on the whole base, as {why}.{own}"


def _gguf(work: _Work) -> str:
    """The merged model as one GGUF file, and a Modelfile for Ollama."""
    tokenizer = work.part / ".tokenizer"
    work.chat.tokenizer.chat_template = work.chat.template
    work.chat.tokenizer.save_pretrained(str(tokenizer))
    gguf_file.check(work.base, tokenizer)
    quantized = work.settings.type in job.K_QUANTS
    base, packed = work.base, _packed(work)
    remarks: list[str] = []
    try:
        merged = merge.plan(base, work.adapter, torch.float32, packed)
    except merge.NotPlain as why:
        if packed:
            raise UserError(f"This adapter cannot be merged onto the trained weights: {why}.") from None
        base = work.part / ".merged"
        remarks.append(_merged_by_peft(work, str(why), base, torch.bfloat16, beside=1.6)[1])
        merged = merge.plan(base, replace(work.adapter, loras={}, biases={}, beyond=Beyond()), torch.float32)
    shares = {"f16": 1 / 2, "bf16": 1 / 2, "q8_0": 1 / 3}  # of the weights in fp32
    _check_room(work.part, int(merged.bytes * shares.get(work.settings.type, 1 / 2 + 1 / 3)))  # of K-quants both files
    work.say(_merging(work.adapter) if base == work.base else "Writing the GGUF file")
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        work.progress(done, merged.bytes)

    ends = sorted(work.chat.ends)
    whole = work.part / ".whole.gguf" if quantized else work.file
    kind: gguf_file.Kind = "bf16" if quantized else work.settings.type  # type: ignore[assignment]
    gguf_file.write_model(whole, base, tokenizer, merged.tensors, kind, ends, work.about, wrote)
    shutil.rmtree(tokenizer)
    if base != work.base:
        shutil.rmtree(base)
    if quantized:
        work.say(f"Quantizing with {quantize.PROGRAM}")
        remarks.append(quantize.run(whole, work.file, work.settings.type, work.progress))
        whole.unlink()
    (work.part / "Modelfile").write_text(modelfile.of_model(work.file.name, work.chat), encoding="utf-8")
    return " ".join(filter(None, remarks))


def _gguf_lora(work: _Work) -> str:
    """The adapter alone as a GGUF file, and a Modelfile that puts it on a base."""
    work.say(f"Writing {len(work.adapter.loras)} LoRA pairs")
    gguf_file.write_adapter(work.file, work.base, work.adapter, work.about)
    text = modelfile.of_adapter(work.file.name, work.chat, work.base_name)
    (work.part / "Modelfile").write_text(text, encoding="utf-8")
    return ""


_KINDS = {"merged": _merged, "gguf": _gguf, "gguf-lora": _gguf_lora}


def _merging(adapter: Adapter) -> str:
    biases = f" and {len(adapter.biases)} biases" if adapter.biases else ""
    return f"Merging {len(adapter.loras)} linears{biases}"


def _packed(work: _Work) -> dict[str, Any]:
    """The 4-bit linears of the base as it was trained on, by module name, if it is those that are merged onto."""
    if work.settings.onto == "base":
        return {}
    work.say("Loading the base model in 4 bits")
    quant_type = work.adapter.trained_on.get("quant_type", work.arguments.get("quant_type", "nf4"))
    double = bool(work.adapter.trained_on.get("double_quant", work.arguments.get("double_quant", True)))
    # in fp32 the values come out of their 4 bits as they are, whatever format is computed in
    model = bases.load_model(work.located.path, quant_type, double, devices.pick(), torch.float32, work.say)
    return {name: part for name, part in model.named_modules() if isinstance(part, bnb.nn.Linear4bit)}


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part).free
    if free < needed + _SPARE:
        raise UserError(
            f"The export needs {amount(needed + _SPARE)} on the disk of '{part.parent}', and {amount(free)} are free: free "
            "some space, or name another folder with --out."
        )


def _proof(work: _Work) -> Proof | str:
    """The exported model against the trained one, or why they were not compared: the model is made by then, and stays."""
    if work.settings.kind == "gguf-lora":
        return gguf_file.compared(work.file, work.base, work.adapter)
    if not work.settings.rows:
        return f"{_NOT_COMPARED}, as asked."
    rows = [] if work.prompts else _held_out(Run(work.folder), work.settings.rows)
    if isinstance(rows, str):
        return f"{rows} Prompts to compare on can be given on the command line (--prompts FILE)."
    try:
        return _compared(work, rows)
    except UserError as error:
        return f"{_NOT_COMPARED}: {error}"
    except Exception as error:  # memory, mostly; libraries raise what they like for a file that they cannot read
        if devices.ran_out(error):
            return f"{_NOT_COMPARED}: memory is too short for the exported model in 16 bits."
        traceback.print_exc()
        return f"{_NOT_COMPARED}: {type(error).__name__}: {first_line(error)}"


def _compared(work: _Work, rows: list[Example]) -> Proof:
    run, columns = Run(work.folder), Columns()
    config = run.config() if (run.path / "run.json").is_file() else None
    columns.load(_key(work.arguments), [work.folder], work.say, chosen=bool(work.arguments.get("chosen")))
    chat = columns.chat(columns.adapters[0], Decoding(control_tokens=config.control) if config else None)
    system_prompt, new = config.system_prompt if config else "", work.settings.max_new_tokens
    if work.prompts:
        work.say(f"Answering {counted(len(work.prompts), 'given prompt')} with the trained model")
        asked = proof.given(columns, work.prompts, chat, system_prompt, new)
    else:
        assert config is not None, "held-out rows are a run's"
        asked = proof.held_out(rows, chat, (config.max_length, system_prompt), new)
    what = counted(len(asked.rows), "given prompt" if work.prompts else "held-out row")
    assert columns.base is not None
    vocabulary = columns.base.model.get_output_embeddings().weight.shape[0]
    with proof.keeping(work.part / ".kept", len(asked.rows), vocabulary) as kept:
        work.say(f"Reading {what} with the trained model")
        trained = proof.as_trained(columns, asked, kept, work.progress)
        columns.base = columns.multi_lora = None
        gc.collect()  # its memory is the next model's
        devices.release()
        gguf = (work.file, work.base) if work.settings.kind == "gguf" else None
        with proof.loaded(work.part, chat.tokenizer, work.say, gguf) as model:
            work.say(f"Reading {what} with the exported model")
            other, kl = proof.exported(model, asked, kept, work.progress)
            lossy = work.settings.type if gguf and work.settings.type in job.K_QUANTS else ""
            return proof.compared(asked, trained, other, kl, kept, _allowed(run), model.proof["computed_in"], lossy)


def _key(arguments: dict[str, Any]) -> clean_base.Key:
    quantization = arguments.get("quant_type", "nf4"), bool(arguments.get("double_quant", True))
    return (arguments["base_model"], arguments.get("revision", ""), *quantization)


def _held_out(run: Run, most: int) -> list[Example] | str:
    """The held-out rows of a run, at most so many, or why there are none."""
    if not (run.path / "run.json").is_file():
        return f"{_NOT_COMPARED}: the adapter is not a run of this program, so it has no held-out rows."
    try:
        if change := changes.describe_data_changes(run):
            return f"{_NOT_COMPARED}: which rows were held out is no longer known, because {change}."
        rows = rows_of(run.config(), run.history()).held_out[:most]
    except UserError as error:
        return f"{_NOT_COMPARED}: {error}"
    numbered = [{**example, "row": number} for number, example in enumerate(rows, 1)]
    return numbered or f"{_NOT_COMPARED}: no rows were held out."


def _allowed(run: Run) -> float | None:
    """How much higher a loss may be within the interval of the run's evaluation; None where it has none."""
    known = evaluations.result(run)
    return known.loss.high - known.loss.difference if known else None


def _record(work: _Work, found: Proof | str, remark: str) -> None:
    """The card, and last of all the record, which says that the folder is whole."""
    settings, adapter, located, run = work.settings, work.adapter, work.located, Run(work.folder)
    sentence = " ".join(filter(None, (found if isinstance(found, str) else found.sentence("as exported"), remark)))
    evals = run.history().all(Eval)
    losses = "\n".join(f"| {event.step} | {loss_of(event)} |" for event in evals)
    losses = (
        f"| step | held-out loss |\n|---|---|\n{losses}\n\nStep 0 is the base." if evals else "No rows were held out."
    )
    if run.is_elsewhere():
        losses = "Not known: the adapter was trained elsewhere."
    origin = companions.Origin(
        adapter.name,
        adapter.sha256,
        work.base_name,
        located.revision,
        located.fingerprint,
        settings.onto,
        settings.dtype if settings.kind == "merged" else settings.type,
        _data(run),
        fetched.source(run.path) or "another program" if run.is_elsewhere() else "",
    )
    gguf = work.file.name if settings.kind != "merged" else ""
    (work.part / "README.md").write_text(companions.card(origin, losses, sentence, gguf), encoding="utf-8")
    record = {
        "made": time.time(),
        "asked": " ".join(job.words(settings)),
        "settings": asdict(settings) | {"out": ""},
        "adapter": {"name": adapter.name, "sha256": adapter.sha256},
        "base": {"name": located.name, "revision": located.revision, "fingerprint": located.fingerprint},
        "proof": sentence,
        "worse": not isinstance(found, str) and bool(found.worse),
        "measured": None if isinstance(found, str) else asdict(found),
    }
    (work.part / job.RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _data(run: Run) -> str:
    """What it was trained on, by name and checksums, in a sentence; "" where that is not known."""
    known = run.history().latest(Data)
    if known is None:
        return ""
    sums = ", ".join(f"`{name}` {value[:16]}" for name, value in sorted((known.files or {}).items()))
    return f"Trained on {known.used:,} rows of {sums or 'its data'}."
