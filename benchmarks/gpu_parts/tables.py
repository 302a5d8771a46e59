"""What the parts found, as text and as summary figures. Imports nothing heavy: the parent prints it."""

import statistics
from collections import defaultdict
from typing import Any

Line = dict[str, Any]
GIB = 2**30


def _gib(line: Line, key: str) -> str:
    return f"{line[key] / GIB:8.2f}" if line.get(key) else f"{'-':>8}"


def _error(line: Line, key: str) -> float | None:
    return line[key] / line["allocated"] - 1 if line.get(key) and line.get("allocated") else None


def fit(lines: list[Line]) -> tuple[list[str], Line]:
    """Every cell; median and worst error of the closed form and of the simulation, and what fits said and ran out."""
    text = [
        f"{'base':24} {'way':6} {'rows x len':>10} {'ckpt':8} {'r/bias':>8} {'planned':>8} {'simul.':>8} {'measured':>8} "
        f"{'plan':>7} {'simul.':>7}  card, GiB"
    ]
    for line in lines:
        off = "".join(
            f" {100 * error:+6.1f}%" if (error := _error(line, key)) is not None else f" {'-':>7}"
            for key in ("planned", "simulated")
        )
        mark = "  RAN OUT" if line.get("ran_out") else ""
        text.append(
            f"{line['base'].rpartition('/')[2]:24} {line['way']:6} {line['rows']:>4} x {line['length']:<4} "
            f"{line['checkpointing']:8} {line['rank']:>3} {line['bias']:5}{_gib(line, 'planned')} {_gib(line, 'simulated')}"
            f" {_gib(line, 'allocated')}{off}  {line['card']} {line['verdict']}{mark}"
        )
    summary: Line = {}
    for way in ("ours", "stock"):
        for key in ("planned", "simulated"):
            errors = [e for line in lines if line["way"] == way and (e := _error(line, key)) is not None]
            if errors:
                sizes = [abs(error) for error in errors]
                figures = {"median_error": statistics.median(sizes), "worst_error": max(sizes), "cells": len(sizes)}
                summary[f"{way}, {key}"] = figures
                text.append(
                    f"{way}, {key}: median error {100 * figures['median_error']:.1f}%, worst "
                    f"{100 * figures['worst_error']:.1f}% over {len(sizes)} cells"
                )
    out = [line for line in lines if line.get("ran_out") and line["verdict"] != "does not fit"]
    summary["fits_that_ran_out"] = sum(line["verdict"] == "fits" for line in out)
    summary["tight_that_ran_out"] = sum(line["verdict"] == "tight" for line in out)
    text.append(f"ran out: {summary['fits_that_ran_out']} of 'fits', {summary['tight_that_ran_out']} of 'tight'")
    return text, summary


def experiments(lines: list[Line]) -> tuple[list[str], Line]:
    text = [f"{'experiment':>10} {'rows x len':>10} {'way':6} {'planned':>8} {'allocated':>9} {'reserved':>8}  outcome"]
    for line in lines:
        outcome = "ran out of memory" if line["ran_out"] else "ran"
        text.append(
            f"{line['experiment']:>10} {line['rows']:>4} x {line['length']:<4} {line['way']:6} {_gib(line, 'planned')} "
            f" {_gib(line, 'allocated')} {_gib(line, 'reserved')}  {outcome} (planned: {line['verdict']}, "
            f"checkpointing {line['checkpointing']})"
        )
    return text, {}


def speed(lines: list[Line]) -> tuple[list[str], Line]:
    """Medians over the repeats, ours as a multiple of each other way, and the highest peak."""
    found = _medians(lines, "way")
    text, summary = [f"{'base':24} {'way':10} {'tokens/s':>10} {'ours is':>9} {'GiB':>8}"], {}
    for (base, way), rate in found.items():
        ours = found.get((base, "ours"))
        ratio = ours / rate if ours else None
        peaks = [line.get("allocated", 0) for line in lines if (line["base"], line["way"]) == (base, way)]
        summary[f"{base}, {way}"] = {"tokens_per_second": rate, "ours_is_times": ratio, "allocated": max(peaks)}
        times = f"{ratio:8.2f}x" if ratio else f"{'-':>9}"
        text.append(f"{base.rpartition('/')[2]:24} {way:10} {rate:10.0f} {times} {_gib({'peak': max(peaks)}, 'peak')}")
    skipped = {line["way"]: line["skipped"] for line in lines if "skipped" in line}
    text += [f"{way}: {reason}" for way, reason in skipped.items()]
    return text, summary


def decode(lines: list[Line]) -> tuple[list[str], Line]:
    """Tokens a second of each column, a batch's time as a multiple of one adapter's, and the share of what memory allows."""
    found = _medians(lines, "columns")
    limits = {line["base"]: line["bandwidth"] / line["bytes_a_token"] for line in lines}
    text = [f"{'base':24} {'columns':22} {'tokens/s a column':>18} {'time of one adapter':>20} {'of the limit':>13}"]
    summary: Line = {}
    for (base, columns), rate in found.items():
        one = found.get((base, "one adapter"))
        ratio = one / rate if one else None
        share = rate / limits[base]
        summary[f"{base}, {columns}"] = {"tokens_per_second": rate, "time_of_one_adapter": ratio, "of_limit": share}
        times = f"{ratio:19.2f}x" if ratio else f"{'-':>20}"
        text.append(f"{base.rpartition('/')[2]:24} {columns:22} {rate:18.1f} {times} {share:13.0%}")
    text += [f"{base.rpartition('/')[2]}: memory allows {limit:.1f} tokens/s" for base, limit in limits.items()]
    return text, summary


def needs(lines: list[Line]) -> tuple[list[str], Line]:
    """What is there, what goes without, and what was tried."""
    found = {line["package"]: line["version"] for line in lines if "package" in line}
    text = [", ".join(f"{name} {version}" for name, version in found.items() if version)]
    text += [f"without {line['package']}: not {line['without']}" for line in lines if "without" in line]
    text += [line["warning"] for line in lines if "warning" in line]
    return text, {"versions": found}


def _medians(lines: list[Line], by: str) -> dict[tuple[str, str], float]:
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        if "tokens_per_second" in line:
            rates[line["base"], line[by]].append(line["tokens_per_second"])
    return {key: statistics.median(values) for key, values in rates.items()}


SHOW = {"needs": needs, "unsloth": speed, "fit": fit, "experiments": experiments, "speed": speed, "decode": decode}
