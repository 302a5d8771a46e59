"""What a run on the null card wrote."""

from typing import Any


def events_of(told: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [event for event in told["events"] if event["kind"] == kind]


def losses(told: dict[str, Any], steps: int = 2) -> list[float]:
    """Of a run that has finished after so many steps."""
    assert told["code"] == 0, told["events"][-1]
    found = [event["loss"] for event in events_of(told, "step")]
    assert len(found) == steps
    return found
