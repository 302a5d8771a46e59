"""A finding with its evidence, why it matters, the source of that, and a fix; and how checks are run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from qlora_gui import formatting
from qlora_gui.diagnostics.evidence import Seen

number = partial(formatting.number, digits=3)  # which is enough in a sentence
Level = Literal["bad", "warn", "note"]
LEVELS: tuple[Level, ...] = ("bad", "warn", "note")

# Sources that several checks rest on.
UNSLOTH_GUIDE = "Unsloth's LoRA hyperparameters guide"
UNSLOTH_TROUBLES = "Unsloth's troubleshooting page"
QLORA = "QLoRA (2305.14314), section 4"
WITHOUT_REGRET = "LoRA Without Regret (Thinking Machines, 2025)"
TINKER = "Tinker's documentation, supervised learning and LoRA primer"
RSLORA = "rsLoRA (2312.03732)"
PEFT_TROUBLES = "PEFT's troubleshooting guide"


@dataclass(frozen=True)
class Finding:
    """`check` names the function that found it; `evidence`, `why` and `fix` are sentences; `knobs` are the
    changes of the run's settings that fix it, {} where no setting does.

    `bad` is what certainly breaks a run, `warn` what probably harms it, `note` what one should know to read its results.
    """

    check: str
    level: Level
    evidence: str
    why: str
    source: str
    fix: str
    knobs: dict[str, Any] = field(default_factory=dict)


Check = Callable[[Seen], Finding | None]


def examine(seen: Seen, checks: Iterable[Check]) -> list[Finding]:
    """What the checks find, worst first and then in their order."""
    findings = [finding for check in checks if (finding := check(seen)) is not None]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))
