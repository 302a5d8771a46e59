"""The command line: the page, and a function for each verb."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_gui import config as configs
from qlora_gui import hardware
from qlora_gui.cli import flags
from qlora_gui.errors import UserError
from qlora_gui.export.job import Settings as ExportSettings
from qlora_gui.formatting import amount
from qlora_gui.inference.protocol import Conversation
from qlora_gui.inference.sampling import Decoding
from qlora_gui.references import ModelRef
from qlora_gui.runs import gpus
from qlora_gui.runs.store import RunStore
from qlora_gui.serving import address
from qlora_gui.system import collector, console, processes

EXIT_FINISHED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 2, 130
_GIVEN = argparse.SUPPRESS  # only flags that were given appear, so that presets and files keep their say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 bad input, 3 does not fit, 130 stopped."""
    console.prepare()
    if argv is None and processes.can_begin_again():
        _hide_password(sys.orig_argv)
    try:
        arguments = flags.parse(sys.argv[1:] if argv is None else argv)
        return _HANDLERS[arguments.verb](arguments, RunStore(arguments.adapters_dir))
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
    config = _config(arguments)
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


def _config(arguments: argparse.Namespace) -> configs.RunConfig:
    """The settings of the run that the flags describe. Raises UserError."""
    knobs = _knobs(arguments)
    config = configs.resolve(knobs, arguments.config, preset_of(arguments, knobs))
    ModelRef.find(config.base_model, config.revision).check_revision()
    return config


def _fit(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import fit
    from qlora_gui.memory import budget

    config = _config(arguments)
    if not arguments.memory:
        hardware.settle(fresh=True)
        gpus.check(config.gpu)
    device = budget.parse(arguments.memory) if arguments.memory else budget.here(config.gpu)
    return fit.show(config, device, arguments.way or "ours", arguments.json, arguments.simulate)


def preset_of(arguments: argparse.Namespace, knobs: dict[str, Any]) -> str | None:
    """The preset asked for; the demo when nothing says what to train."""
    says_what = arguments.config or "base_model" in knobs or "dataset" in knobs
    return arguments.preset or (None if says_what else "demo")


def _compare(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import compare as batch

    for name in ("adapters", "prompts", "out"):
        if not getattr(arguments, name):
            raise UserError(f"{arguments.called} needs --{name}: see {flags.program()} --help.")
    given = {name: getattr(arguments, name) for name in Decoding.model_fields if hasattr(arguments, name)}
    sampling = arguments.sample or not given.keys().isdisjoint({"temperature", "top_p"})
    decoding = configs.checked(Decoding, {"greedy": not sampling} | given)
    batch.compare_file(
        _adapters(arguments, store),
        arguments.prompts,
        arguments.out,
        base=arguments.base,
        revision=getattr(arguments, "revision", ""),
        decoding=decoding,
        say=_say,
    )
    return EXIT_FINISHED


def _adapters(arguments: argparse.Namespace, store: RunStore) -> list[Path]:
    """The folders of the adapters that were named; those on the hub are fetched. Raises UserError."""
    from qlora_gui.runs import fetched

    return [fetched.find(named, store, _say) for named in arguments.adapters]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _evaluate(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import evaluate
    from qlora_gui.evaluation.job import Settings
    from qlora_gui.evaluation.run import Reading

    if not arguments.adapters:
        raise UserError(f"{arguments.called} needs --adapters: see {flags.program()} --help.")
    for name in ("skip_bad_rows", "dataset_format", "dataset_split"):
        if arguments.data is None and hasattr(arguments, name):
            raise UserError(f"{flags.flag(name)} says how the rows of --data are read: give them, or leave it out.")
    asked = {"rows": arguments.rows, "max_new_tokens": _whole(arguments, "max_new_tokens")}
    settings = Settings(**{name: value for name, value in asked.items() if value is not None})
    how = Reading(
        skip_bad_rows=getattr(arguments, "skip_bad_rows", False),
        format=getattr(arguments, "dataset_format", "auto"),
        split=getattr(arguments, "dataset_split", "train"),
    )
    return evaluate.run(
        _adapters(arguments, store),
        arguments.data,
        arguments.out,
        settings,
        arguments.base,
        revision=getattr(arguments, "revision", ""),
        how=how,
        root=store.root,
    )


def _export(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import export

    if not arguments.adapters or len(arguments.adapters) > 1:
        raise UserError(f"{arguments.called} needs --adapters with one adapter: see {flags.program()} --help.")
    if idle := [name for name in ("public", "push_existing") if getattr(arguments, name) and not arguments.push]:
        raise UserError(f"{flags.flag(idle[0])} says how it is pushed: name the repository with --push.")
    for name in ("to", "out") if arguments.to != "adapter" else ():
        if not getattr(arguments, name):
            raise UserError(f"{arguments.called} needs --{name}: see {flags.program()} --help.")
    adapter = _adapters(arguments, store)[0]
    if arguments.push or arguments.to == "adapter":
        return _push(arguments, adapter)
    settings, prompts = _export_settings(arguments)
    return export.run(adapter, settings, arguments.base, _revision(arguments), prompts)


def _push(arguments: argparse.Namespace, adapter: Path) -> int:
    from qlora_gui.cli import push

    existing = arguments.push_existing
    if arguments.to != "adapter":
        settings, prompts = _export_settings(arguments)
        asked = push.Asked(arguments.push, arguments.public, existing)
        return push.export_and_push(adapter, settings, asked, arguments.base, _revision(arguments), prompts)
    if not arguments.push:
        raise UserError(f"There is nothing to make: the adapter lies in '{adapter}'. Name a repository with --push.")
    if arguments.out:
        raise UserError("--to adapter makes no folder, and pushes the adapter's own: leave out --out.")
    return push.push(adapter, "", push.Asked(arguments.push, arguments.public, existing))


def _revision(arguments: argparse.Namespace) -> str:
    return str(getattr(arguments, "revision", ""))


def _export_settings(arguments: argparse.Namespace) -> tuple[ExportSettings, list[Conversation]]:
    """What is exported, and the prompts to compare on."""
    from qlora_gui.cli import export

    asked = {"rows": arguments.rows, "max_new_tokens": _whole(arguments, "max_new_tokens")}
    given = {name: value for name, value in asked.items() if value is not None} | {"kind": arguments.to}
    prompts = export.conversations(arguments.prompts, given)
    settings = ExportSettings(
        dtype=arguments.dtype, onto=arguments.onto, type=arguments.type, out=str(arguments.out), **given
    )
    return settings, prompts


def _serve(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import serve

    key = os.environ.pop(serve.KEY, "")  # no child shall have it
    place = address.Address(arguments.host, arguments.port, hosts=arguments.allow_host)
    models = serve.models_of(store, arguments.runs or [], arguments.base, getattr(arguments, "revision", ""))
    return serve.print_vllm(models) if arguments.vllm else serve.run(models, place, key)


def _report(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli.report import report

    if not arguments.out:
        raise UserError(f"{arguments.called} needs --out: see {flags.program()} --help.")
    return report(store, arguments.runs, arguments.out, print)


def _whole(arguments: argparse.Namespace, name: str) -> int | None:
    """A flag of decoding as a whole number; None where it was not given. Raises UserError."""
    text = getattr(arguments, name, None)
    if text is None:
        return None
    if not str(text).isdecimal():
        raise UserError(f"{flags.flag(name)} is not a whole number (it is '{text}'): give one like 256.")
    return int(text)


def _cache(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui import cache
    from qlora_gui.runs import uploads

    entries = cache.entries()
    for entry in entries:
        print(f"{amount(entry.bytes):>12}  {entry.name}")
    print(f"{amount(sum(entry.bytes for entry in entries)):>12}  in {cache.folder()}")
    stored_uploads = uploads.entries(store.named())
    unused = [upload for upload in stored_uploads if not upload.runs]
    if stored_uploads:
        print(
            f"{amount(sum(upload.bytes for upload in stored_uploads)):>12}  in {uploads.folder()}: {len(stored_uploads)} uploads, "
            f"{len(unused)} of them named by no run and removed after {uploads.KEPT_DAYS} days"
        )
    if arguments.clear:
        freed = cache.clear()
        in_use = len(cache.entries())
        print(f"Freed {amount(freed)}" + (f"; {in_use} in use and left as it is" if in_use else ""))
    return EXIT_FINISHED


def _queue(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import sweep as queued

    return queued.show(store)


def _check(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import check

    return check.show(store, arguments.json)


def _preview(arguments: argparse.Namespace, store: RunStore) -> int:
    from qlora_gui.cli import preview
    from qlora_gui.runs import row_preview

    config = _config(arguments)
    return preview.show(config, row_preview.SHOWN if arguments.rows is None else arguments.rows, arguments.json)


def _page(arguments: argparse.Namespace, store: RunStore) -> int:
    if arguments.clear:
        raise UserError("--clear deletes what --headless-cache shows: give both.")
    idle = [flags.flag(name) for name in configs.fields() if hasattr(arguments, name)]
    idle += [flags.flag(name) for name in ("memory", "way", "simulate") if getattr(arguments, name)]
    if idle or arguments.preset or arguments.config:
        raise UserError(f"{(idle or ['--preset and --config'])[0]} belongs to a headless verb: add --headless-train.")
    from qlora_gui import hub

    with collector.paused():
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
    """Change to an empty folder: there `docs/notes` is a name on the hub, and reveals nothing of what lies here.

    Raises UserError where it cannot be made.
    """
    from qlora_gui import hub

    os.environ["QLORA_GUI_CACHE"] = str(hub.cache_dir().absolute())
    try:
        os.chdir(hub.private("nowhere"))
    except OSError as error:
        raise UserError(
            f"The cache folder '{hub.cache_dir()}' cannot be used ({error.strerror}): set QLORA_GUI_CACHE to another one."
        ) from None


def _hide_password(argv: Sequence[str]) -> None:
    """A login on the command line is in every process list: begin this process again, with it in the environment."""
    for place, word in enumerate(argv):
        apart = word == "--auth" and place + 1 < len(argv)
        if apart or word.startswith("--auth="):
            os.environ[address.AUTH] = argv[place + 1] if apart else word.removeprefix("--auth=")
            processes.begin_again([*argv[:place], *argv[place + 1 + apart :]])


_HANDLERS = {
    "": _page,
    "train": _train,
    "sweep": _sweep,
    "queue": _queue,
    "fit": _fit,
    "check": _check,
    "preview": _preview,
    "compare": _compare,
    "evaluate": _evaluate,
    "export": _export,
    "serve": _serve,
    "report": _report,
    "cache": _cache,
}
