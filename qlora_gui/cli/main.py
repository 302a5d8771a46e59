"""The command line: flags made from RunConfig, the page, and the headless verbs."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from qlora_gui import config as configs
from qlora_gui import hardware
from qlora_gui.errors import UserError
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs import gpus
from qlora_gui.runs.store import RunStore
from qlora_gui.system import console, processes
from qlora_gui.ui import address

EXIT_FINISHED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 2, 130
_GIVEN = argparse.SUPPRESS  # only flags that were given appear, so that presets and files keep their say


class _Parser(argparse.ArgumentParser):
    """Faults are UserErrors: one sentence, without the page of usage."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flag = unknown.group(1).partition("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, 1)
            hint = f"did you mean {near[0]}" if near else "see python app.py --help"
            raise UserError(f"There is no flag {flag}: {hint}.")
        raise UserError(f"{message[0].upper()}{message[1:]}: see python app.py --help.")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; the flags of a run come from RunConfig, those of decoding from Decoding."""
    parser = _Parser(
        prog="python app.py",
        description="Fine-tune a language model with QLoRA on the GPU you have, and compare it with its base. "
        "Without a verb the page opens.",
        allow_abbrev=False,
    )
    verbs = parser.add_argument_group("verbs").add_mutually_exclusive_group()
    verbs.add_argument("--headless-train", action="store_true", help="train without a page (alone: the demo)")
    verbs.add_argument(
        "--headless-compare", action="store_true", help="answer a file of prompts with base and adapters"
    )
    verbs.add_argument(
        "--headless-evaluate", action="store_true", help="is an adapter better than its base, with intervals"
    )
    verbs.add_argument(
        "--headless-report",
        nargs="*",
        metavar="RUN",
        help="a report on these runs (default: all), .md or .html, to --out",
    )
    verbs.add_argument(
        "--headless-sweep", action="store_true", help="queue a run for every combination of settings given as lists"
    )
    verbs.add_argument(
        "--headless-queue", action="store_true", help="who runs, who waits; goes on with those that wait"
    )
    verbs.add_argument("--headless-fit", action="store_true", help="will the run fit into memory, and what to change")
    verbs.add_argument(
        "--headless-check", action="store_true", help="does this machine do what a run needs (about a minute)"
    )
    verbs.add_argument("--headless-cache", action="store_true", help="place and size of the kept quantized bases")
    page = parser.add_argument_group("page")
    page.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    page.add_argument("--port", type=int, help="port (default: the first free one from 7860)")
    page.add_argument("--share", action="store_true", help="also give a public Gradio link, always with a password")
    page.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this login (also: QLORA_GUI_AUTH)")
    page.add_argument(
        "--no-token",
        action="store_true",
        help="open the page to every user and program of this machine, without the token in its address",
    )
    page.add_argument(
        "--allow-dir",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a folder whose files may be named on a page that others can reach; may be given again",
    )
    page.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name that the page goes by"
    )
    parser.add_argument(
        "--adapters-dir", type=Path, default=Path("adapters"), help="folder of the runs (default: adapters)"
    )
    run = parser.add_argument_group("headless train")
    run.add_argument("--preset", help=f"start from a preset: {', '.join(configs.preset_names())}")
    run.add_argument("--config", metavar="FILE", help="a YAML file, or the run.json of an earlier run")
    run.add_argument("--resume", metavar="RUN", help="go on with a stopped or dead run from its last checkpoint")
    run.add_argument(
        "--resume-changed", action="store_true", help="with --resume: also where data or base have changed since"
    )
    run.add_argument(
        "--answers", type=int, default=3, metavar="N", help="held-out prompts answered at the end (default: 3)"
    )
    run.add_argument("--json", action="store_true", help="print events or checks as JSON lines, or the plan as JSON")
    for name, field in configs.fields().items():
        _add_flag(run, name, field)
    queue = parser.add_argument_group("headless train and sweep: the queue")
    queue.add_argument("--queue", action="store_true", help="let the run wait until the GPU is free, and return")
    queue.add_argument("--no-wait", action="store_true", help="let the runs of a sweep wait, and return")
    fit = parser.add_argument_group("headless fit (with the settings of a run)")
    fit.add_argument("--memory", metavar="16GB", help="memory of the card to plan for (default: this machine's device)")
    fit.add_argument(
        "--way", choices=("ours", "stock"), help="as this program trains, or the usual way (default: ours)"
    )
    fit.add_argument(
        "--simulate", action="store_true", help="simulate a step instead of using the closed form (seconds)"
    )
    cache = parser.add_argument_group("headless cache")
    cache.add_argument("--clear", action="store_true", help="delete them; the next load quantizes again")
    evaluate = parser.add_argument_group(
        "headless evaluate",
        "Takes --adapters, --base, --max-new-tokens, --dataset-format, --dataset-split, --skip-bad-rows and --out too.",
    )
    evaluate.add_argument("--data", metavar="FILE", help="rows to measure on (default: those that the run held out)")
    evaluate.add_argument("--rows", type=int, metavar="N", help="measure on at most so many rows (default: 100)")
    compare = parser.add_argument_group("headless compare")
    compare.add_argument("--adapters", nargs="+", metavar="DIR", type=Path, help="adapter folders, five at most")
    compare.add_argument("--prompts", metavar="FILE", type=Path, help="JSONL with prompt or messages, or plain lines")
    compare.add_argument("--out", metavar="FILE", type=Path, help="where the result goes: JSON, or the report")
    compare.add_argument("--base", help="base model, where it is not the one that the first adapter names")
    compare.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    for name, field in Decoding.model_fields.items():
        if name not in ("greedy", "seed", "thinking"):  # the last two are flags of a run too
            _add_flag(compare, name, field)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 3 does not fit, 130 stopped."""
    console.prepare()
    if argv is None and processes.can_begin_again():
        _hide_password(sys.orig_argv)
    try:
        arguments = build_parser().parse_args(argv)
        store = RunStore(arguments.adapters_dir)
        if arguments.headless_train:
            return _train(arguments, store)
        if arguments.headless_sweep:
            return _sweep(arguments, store)
        if arguments.headless_queue:
            from qlora_gui.cli import sweep as queued

            return queued.show(store)
        if arguments.headless_compare:
            return _compare(arguments)
        if arguments.headless_evaluate:
            return _evaluate(arguments)
        if arguments.headless_report is not None:
            return _report(arguments, store)
        if arguments.headless_fit:
            return _fit(arguments)
        if arguments.headless_check:
            from qlora_gui.cli import check

            return check.show(store, arguments.json)
        if arguments.headless_cache or arguments.clear:
            return _cache(arguments, store)
        return _page(arguments, store)
    except UserError as error:
        print(console.printable(str(error)), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_STOPPED


def _train(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import train

    knobs = _knobs(arguments)
    if arguments.resume:
        if knobs or arguments.preset or arguments.config:
            raise UserError("--resume goes on with a run as it was configured: leave out the other settings.")
        changed = arguments.resume_changed
        return train.train(store, None, arguments.resume, arguments.json, arguments.answers, changed)
    if arguments.resume_changed:
        raise UserError("--resume-changed says how a run is resumed: name the run with --resume.")
    config = configs.resolve(knobs, arguments.config, preset_of(arguments, knobs))
    if arguments.queue:
        from qlora_gui.cli import sweep as queued

        return queued.add(store, config)
    return train.train(store, config, None, arguments.json, arguments.answers)


def _sweep(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import sweep as queued
    from qlora_gui.memory import budget
    from qlora_gui.runs import sweep

    knobs = _knobs(arguments)
    values = configs.layered(knobs, arguments.config, preset_of(arguments, knobs))
    # A flag of a knob that takes one word may name several, with commas: --rank 8,16,64.
    listed = {name: sweep.listed(value) for name, value in knobs.items() if sweep.names_several(name, value)}
    hardware.settle(fresh=True)
    device = budget.parse(arguments.memory) if arguments.memory else budget.here(str(values.get("gpu", "")))
    return queued.sweep(store, sweep.expand(values | listed), device, not arguments.no_wait)


def _knobs(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run that were given as flags."""
    return {name: getattr(arguments, name) for name in configs.fields() if hasattr(arguments, name)}


def _fit(arguments: argparse.Namespace) -> int:
    from qlora_gui.cli import fit
    from qlora_gui.memory import budget

    knobs = _knobs(arguments)
    config = configs.resolve(knobs, arguments.config, preset_of(arguments, knobs))
    if not arguments.memory:
        hardware.settle(fresh=True)
        gpus.check(config.gpu)
    device = budget.parse(arguments.memory) if arguments.memory else budget.here(config.gpu)
    return fit.show(config, device, arguments.way or "ours", arguments.json, arguments.simulate)


def preset_of(arguments: argparse.Namespace, knobs: dict[str, Any]) -> str | None:
    """The preset asked for; the demo when nothing says what to train."""
    says_what = arguments.config or "base_model" in knobs or "dataset" in knobs
    return arguments.preset or (None if says_what else "demo")


def _compare(arguments: argparse.Namespace) -> int:
    from qlora_gui.cli import compare as batch

    for name in ("adapters", "prompts", "out"):
        if not getattr(arguments, name):
            raise UserError(f"--headless-compare needs --{name}: see python app.py --help.")
    given = {name: getattr(arguments, name) for name in Decoding.model_fields if hasattr(arguments, name)}
    sampling = arguments.sample or not given.keys().isdisjoint({"temperature", "top_p"})
    decoding = configs.checked(Decoding, {"greedy": not sampling} | given)
    batch.compare_file(
        arguments.adapters,
        arguments.prompts,
        arguments.out,
        base=arguments.base,
        revision=getattr(arguments, "revision", ""),
        decoding=decoding,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return EXIT_FINISHED


def _evaluate(arguments: argparse.Namespace) -> int:
    from qlora_gui.cli import evaluate
    from qlora_gui.evaluation.job import Settings
    from qlora_gui.evaluation.run import Reading

    if not arguments.adapters:
        raise UserError("--headless-evaluate needs --adapters: see python app.py --help.")
    for name in ("skip_bad_rows", "dataset_format", "dataset_split"):
        if arguments.data is None and hasattr(arguments, name):
            raise UserError(f"{_flag(name)} says how the rows of --data are read: give them, or leave it out.")
    asked = {"rows": arguments.rows, "max_new_tokens": _whole(arguments, "max_new_tokens")}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    how = Reading(
        skip_bad_rows=getattr(arguments, "skip_bad_rows", False),
        format=getattr(arguments, "dataset_format", "auto"),
        split=getattr(arguments, "dataset_split", "train"),
    )
    return evaluate.run(
        arguments.adapters,
        arguments.data,
        arguments.out,
        settings,
        arguments.base,
        revision=getattr(arguments, "revision", ""),
        how=how,
    )


def _report(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli.report import report

    if not arguments.out:
        raise UserError("--headless-report needs --out: see python app.py --help.")
    return report(store, arguments.headless_report, arguments.out, print)


def _whole(arguments: argparse.Namespace, name: str) -> int | None:
    """A flag of decoding as a whole number; None where it was not given. Raises UserError."""
    text = getattr(arguments, name, None)
    if text is None:
        return None
    if not str(text).isdecimal():
        raise UserError(f"{_flag(name)} is no whole number (it is '{text}'): give one like 256.")
    return int(text)


def _cache(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui import cache
    from qlora_gui.runs import uploads

    if not arguments.headless_cache:
        raise UserError("--clear deletes what --headless-cache shows: give both.")
    found = cache.entries()
    for entry in found:
        print(f"{entry.bytes / 1e6:10,.1f} MB  {entry.name}")
    print(f"{sum(entry.bytes for entry in found) / 1e6:10,.1f} MB  in {cache.folder()}")
    kept_uploads = uploads.entries(store.named())
    unused = [one for one in kept_uploads if not one.runs]
    if kept_uploads:
        print(
            f"{sum(one.bytes for one in kept_uploads) / 1e6:10,.1f} MB  in {uploads.folder()}: {len(kept_uploads)} uploads, "
            f"{len(unused)} of them named by no run and removed after {uploads.KEPT_DAYS} days"
        )
    if arguments.clear:
        freed = cache.clear()
        in_use = len(cache.entries())
        print(f"Freed {freed / 1e6:,.1f} MB" + (f"; {in_use} in use and left as it is" if in_use else ""))
    return EXIT_FINISHED


def _page(arguments: argparse.Namespace, store: RunStore) -> int:
    idle = [_flag(name) for name in configs.fields() if hasattr(arguments, name)]
    idle += [_flag(name) for name in ("memory", "way", "simulate") if getattr(arguments, name)]
    if idle or arguments.preset or arguments.config:
        raise UserError(f"{(idle or ['--preset and --config'])[0]} belongs to a headless verb: add --headless-train.")
    from qlora_gui import hub
    from qlora_gui.ui.app import launch_page

    auth = arguments.auth or os.environ.pop(address.AUTH, "")  # no child shall have it
    place = address.Address(
        arguments.host, arguments.port, arguments.share, auth, arguments.allow_host, not arguments.no_token
    )
    if place.has_guests:
        allowed = [store.root, hub.cache_dir() / "uploads", *arguments.allow_dir]
        store = RunStore(store.root, allowed, arguments.allow_dir)
        _work_nowhere()
    launch_page(store, place)
    return EXIT_FINISHED


def _work_nowhere() -> None:
    """Go on in a folder without files: there `docs/notes` is a name of the hub, and tells nobody what lies here.

    Raises UserError where there can be none.
    """
    from qlora_gui import hub

    os.environ["QLORA_GUI_CACHE"] = str(hub.cache_dir().absolute())
    try:
        os.chdir(hub.private("nowhere"))
    except OSError as error:
        raise UserError(
            f"The cache folder '{hub.cache_dir()}' cannot be used ({error.strerror}): set QLORA_GUI_CACHE to another one."
        ) from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_flag(group: Any, name: str, field: Any) -> None:
    """One flag of a knob. Values stay texts: RunConfig itself converts and judges them."""
    default = ", ".join(field.default) if isinstance(field.default, list) else field.default
    told = f"{field.description} (default: {default})" if default != "" else str(field.description)
    told = told.replace("%", "%%")
    if configs.types_of(field) == (bool,):
        group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=_GIVEN, help=told)
        return
    choices = configs.choices(field)
    group.add_argument(_flag(name), default=_GIVEN, help=told, metavar="|".join(choices) if choices else name.upper())


def _hide_password(argv: Sequence[str]) -> None:
    """A login on the command line is in every process list: begin this process again, with it in the environment."""
    for place, word in enumerate(argv):
        apart = word == "--auth" and place + 1 < len(argv)
        if apart or word.startswith("--auth="):
            os.environ[address.AUTH] = argv[place + 1] if apart else word.removeprefix("--auth=")
            processes.begin_again([*argv[:place], *argv[place + 1 + apart :]])
