"""The flags of the command line: a parser for each subcommand, and the one of the `--headless-x` flags, which name the same verbs.

Flags of a run are made from RunConfig, those of decoding from Decoding.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic.fields import FieldInfo

from qlora_gui import config as configs
from qlora_gui.errors import UserError
from qlora_gui.export import job as export
from qlora_gui.export import push_job
from qlora_gui.inference.sampling import Decoding

_GIVEN = argparse.SUPPRESS  # only flags that were given appear, so that presets and files keep their say
_ABOUT = (
    "Fine-tune a language model with QLoRA on the GPU you have, and compare it with its base. Without a command the page "
    "is served."
)


class Parser(argparse.ArgumentParser):
    """Faults are UserErrors: one sentence, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"argument COMMAND: invalid choice: '([^']*)'", message):
            near = difflib.get_close_matches(unknown.group(1), VERBS, 1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help."
            raise UserError(f"There is no command {unknown.group(1)}: {hint}")
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flag = unknown.group(1).partition("=")[0]
            if not flag.startswith("-"):
                raise UserError(f"'{flag}' is given to no flag: see {self.prog} --help.")
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help."
            raise UserError(f"There is no flag {flag}: {hint}")
        raise UserError(f"{message[0].upper()}{message[1:]}: see {self.prog} --help.")


@dataclass(frozen=True)
class Verb:
    """A subcommand: what it is for, and the groups of flags that it takes."""

    about: str
    flags: Sequence[Callable[[Any], None]]


def program() -> str:
    """How this program was called, for its own help and hints."""
    return "qlora-gui" if Path(sys.argv[0]).stem == "qlora-gui" else "python app.py"


def subcommands() -> tuple[Parser, dict[str, Parser]]:
    """The parser of `qlora-gui VERB ...`, and without a verb of the page; and that of each verb."""
    parser = Parser(prog=program(), description=_ABOUT, allow_abbrev=False)
    _page(parser.add_argument_group("page"))
    _store(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, verb in VERBS.items():
        own = verbs.add_parser(
            name, help=verb.about, description=f"{verb.about[0].upper()}{verb.about[1:]}.", allow_abbrev=False
        )
        _store(own, default=argparse.SUPPRESS)  # else it would take the place of one given before the command
        for add in verb.flags:
            add(own)
    parser.epilog = (
        f"{parser.prog} COMMAND --help shows the flags of a command; --headless-COMMAND does the same as COMMAND."
    )
    return parser, verbs.choices


def headless() -> Parser:
    """The parser of `--headless-VERB`: all flags of all verbs in one. `verb` is "" without such a flag."""
    parser = Parser(prog=program(), description=_ABOUT, allow_abbrev=False)
    verbs = parser.add_argument_group("verbs").add_mutually_exclusive_group()
    for name, verb in VERBS.items():
        if name == "report":
            verbs.add_argument("--headless-report", nargs="*", metavar="RUN", dest="runs", help=verb.about)
        elif name not in ("preview", "serve"):
            verbs.add_argument(
                f"--headless-{name}", action="store_const", const=name, dest="verb", default="", help=verb.about
            )
    _page(parser.add_argument_group("page"))
    _store(parser)
    groups = [_run, _train, _queue, _no_wait, _plan, _cache, _evaluate, _measured, _compare, _export]
    for add in groups:
        add(parser)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The words of a command line. All flags of all verbs have a value, those that were not given their default.

    `verb` is "" for the page; `called` is how the verb was given. Raises UserError; help ends the program.
    """
    flat = headless()
    words = [word.partition("=")[0] for word in argv]
    if not any(word.startswith("--headless-") for word in words) and (
        not words or {"-h", "--help", *VERBS} & set(words) or not words[0].startswith("-")
    ):
        parser, verbs = subcommands()
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:  # reported by the command's parser, which knows the flags that may have been meant
            verbs.get(arguments.verb, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
        arguments.verb = arguments.called = arguments.verb or ""
        return argparse.Namespace(**vars(flat.parse_args([])) | vars(arguments))
    arguments = flat.parse_args(argv)
    arguments.verb = "report" if arguments.runs is not None else arguments.verb
    arguments.called = f"--headless-{arguments.verb}"
    return arguments


def flag(name: str) -> str:
    """`learning_rate` -> `--learning-rate`."""
    return "--" + name.replace("_", "-")


def _listen(group: Any, first_port: int) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    group.add_argument("--port", type=int, help=f"port (default: the first free one from {first_port})")
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name by which it is reached; may be given again",
    )


def _page(group: Any) -> None:
    _listen(group, 7860)
    group.add_argument("--share", action="store_true", help="also create a public Gradio link, always with a password")
    group.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this login (also: QLORA_GUI_AUTH)")
    group.add_argument(
        "--no-token",
        action="store_true",
        help="open the page to every user and program on this machine, without the token in its address",
    )
    group.add_argument(
        "--allow-dir",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a folder whose files may be named on a page that others can reach; may be given again",
    )


def _store(parser: Any, default: Any = Path("adapters")) -> None:
    parser.add_argument("--adapters-dir", type=Path, default=default, help="folder of the runs (default: adapters)")


def _run(parser: Any) -> None:
    """The settings of a run."""
    group = parser.add_argument_group("settings of a run")
    group.add_argument("--preset", help=f"start from a preset: {', '.join(configs.preset_names())}")
    group.add_argument("--config", metavar="FILE", help="a YAML file, or the run.json of an earlier run")
    for name, field in configs.fields().items():
        _add(group, name, field)


def _train(parser: Any) -> None:
    group = parser.add_argument_group("train")
    group.add_argument("--resume", metavar="RUN", help="continue a stopped or dead run from its last checkpoint")
    group.add_argument(
        "--resume-changed", action="store_true", help="with --resume: even if data or base have changed since"
    )
    group.add_argument(
        "--answers", type=int, default=3, metavar="N", help="held-out prompts answered at the end (default: 3)"
    )
    _json(group)


def _json(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print JSON instead of sentences: for programs")


def _queue(parser: Any) -> None:
    parser.add_argument("--queue", action="store_true", help="let the run wait until the GPU is free, and return")


def _no_wait(parser: Any) -> None:
    parser.add_argument("--no-wait", action="store_true", help="let the runs of a sweep wait, and return")


def _memory(group: Any) -> None:
    group.add_argument(
        "--memory", metavar="16GB", help="memory of the card to plan for (default: this machine's device)"
    )


def _plan(parser: Any) -> None:
    group = parser.add_argument_group("fit")
    _memory(group)
    group.add_argument(
        "--way", choices=("ours", "stock"), help="as this program trains, or the usual way (default: ours)"
    )
    group.add_argument(
        "--simulate", action="store_true", help="simulate a step instead of using the closed form (seconds)"
    )


def _shown(parser: Any) -> None:
    parser.add_argument("--rows", type=int, metavar="N", help="rows to show (default: 3)")


def _runs(parser: Any) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to report on (default: all)")


def _cache(parser: Any) -> None:
    parser.add_argument("--clear", action="store_true", help="delete them; the next load quantizes again")


def _adapters(group: Any) -> None:
    group.add_argument(
        "--adapters",
        nargs="+",
        metavar="ADAPTER",
        help="adapters, five at most: folders, names of runs, or hub ids like owner/name or owner/name@revision",
    )
    _base(group)


def _base(group: Any) -> None:
    group.add_argument("--base", help="base model, if it is not the one that the first adapter names")


def _serve(parser: Any) -> None:
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="runs, adapter folders or hub ids, five at most (default: the newest run)",
    )
    group = parser.add_argument_group("serve")
    _listen(group, 8000)
    _base(group)
    group.add_argument("--vllm", action="store_true", help="only print vLLM's command for the same, or why it refuses")


def _out(group: Any) -> None:
    group.add_argument(
        "--out", metavar="PATH", type=Path, help="where the result goes: JSON, the report, or the folder of an export"
    )


def _rows(group: Any) -> None:
    group.add_argument(
        "--rows", type=int, metavar="N", help="measure on at most this many rows (default: 100; of an export, 50)"
    )


def _evaluate(parser: Any) -> None:
    group = parser.add_argument_group("evaluate")
    group.add_argument("--data", metavar="FILE", help="rows to measure on (default: those that the run held out)")
    _rows(group)


def _measured(parser: Any) -> None:
    """What evaluate and compare both take."""
    group = parser.add_argument_group("evaluate and compare")
    _adapters(group)
    _out(group)


def _export(parser: Any) -> None:
    group = parser.add_argument_group("export")
    group.add_argument(
        "--to",
        choices=(*get_args(export.Kind), push_job.ADAPTER),
        help="what to make: the adapter merged into its base, the same as a GGUF file, or the adapter alone as one; with "
        "--push also adapter: its folder as it is",
    )
    group.add_argument(
        "--push", metavar="USER/NAME", help="push it to this repository on the Hugging Face Hub, a private one"
    )
    group.add_argument("--public", action="store_true", help="with --push: make the repository a public one")
    group.add_argument(
        "--push-existing",
        action="store_true",
        help="with --push: also into a repository that has files, without asking",
    )
    group.add_argument(
        "--type", choices=get_args(export.Type), default="f16", help="number format of a GGUF file (default: f16)"
    )
    group.add_argument(
        "--dtype",
        choices=get_args(export.Dtype),
        default="bf16",
        help="number format of a merged folder (default: bf16)",
    )
    group.add_argument(
        "--onto",
        choices=get_args(export.Onto),
        default="base",
        help="merge onto the base's own weights, or onto the 4-bit values that were trained on (default: base)",
    )


def _prompts(group: Any) -> None:
    group.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="JSONL with prompt or messages, or plain lines (of an export: instead of held-out rows)",
    )


def _compare(parser: Any) -> None:
    group = parser.add_argument_group("compare")
    _prompts(group)
    group.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    for name, field in Decoding.model_fields.items():
        if name not in ("greedy", "seed", "thinking"):  # the last two are flags of a run too
            _add(group, name, field)


def _only(fields: Mapping[str, FieldInfo], *names: str) -> Callable[[Any], None]:
    """Some settings of a run or of decoding, for verbs that need no others."""

    def add(parser: Any) -> None:
        for name in names:
            _add(parser, name, fields[name])

    return add


def _add(group: Any, name: str, field: Any) -> None:
    """One flag of a knob. Values stay texts: RunConfig itself converts and judges them."""
    default = ", ".join(field.default) if isinstance(field.default, list) else field.default
    help_text = f"{field.description} (default: {default})" if default != "" else str(field.description)
    help_text = help_text.replace("%", "%%")
    if configs.types_of(field) == (bool,):
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=_GIVEN, help=help_text)
        return
    choices = configs.choices(field)
    group.add_argument(
        flag(name), default=_GIVEN, help=help_text, metavar="|".join(choices) if choices else name.upper()
    )


VERBS = {
    "train": Verb("train without a page (alone: the demo)", (_run, _train, _queue)),
    "sweep": Verb("queue a run for every combination of settings given as lists", (_run, _memory, _no_wait)),
    "queue": Verb("show which run trains and which wait; continue with those that wait", ()),
    "fit": Verb("say whether the run will fit into memory, and what to change", (_run, _plan, _json)),
    "check": Verb("say whether this machine can do what a run needs (about a minute)", (_json,)),
    "preview": Verb("show what a run will learn from, token by token", (_run, _shown, _json)),
    "compare": Verb(
        "answer a file of prompts with base and adapters",
        (_measured, _compare, _only(Decoding.model_fields, "seed", "thinking"), _only(configs.fields(), "revision")),
    ),
    "evaluate": Verb(
        "say whether an adapter is better than its base, with intervals",
        (
            _measured,
            _evaluate,
            _only(Decoding.model_fields, "max_new_tokens"),
            _only(configs.fields(), "dataset_format", "dataset_split", "skip_bad_rows", "revision"),
        ),
    ),
    "export": Verb(
        "merge an adapter into its base, show that it is still the same model, and push it to the hub",
        (
            _adapters,
            _out,
            _export,
            _rows,
            _prompts,
            _only(Decoding.model_fields, "max_new_tokens"),
            _only(configs.fields(), "revision"),
        ),
    ),
    "serve": Verb(
        "answer other programs as base and adapters, in the form of OpenAI's API",
        (_serve, _only(configs.fields(), "revision")),
    ),
    "report": Verb("write a report on these runs (default: all), .md or .html, to --out", (_runs, _out)),
    "cache": Verb("show place and size of the cached quantized models", (_cache,)),
}
