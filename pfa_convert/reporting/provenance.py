"""Where a report comes from: the command, versions, devices and dates, of the report and of its runs."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from pfa_convert.reporting.results import Run
from pfa_convert.training.environment import installed_version, parts

VERSIONS = {
    "pfa_convert": "pfa-convert",
    "commit": "commit",
    "python": "Python",
    "torch": "PyTorch",
    "torchvision": "torchvision",
    "timm": "timm",
}
"""What a run's environment has of versions, and what they are called."""


def provenance(runs: Iterable[Run], command: str = "") -> list[tuple[str, str]]:
    """Return headings and texts; of the runs, only what they recorded."""
    begun = [run.environment for run in runs]
    environments = [part for environment in begun for part in parts(environment)]

    def recorded(key: str, name: str = "") -> str:
        values = dict.fromkeys(str(found[key]) for found in environments if found.get(key) is not None)
        return ", ".join(f"{name} {value}".strip() for value in values)

    versions = ", ".join(filter(None, (recorded(key, name) for key, name in VERSIONS.items())))
    dates = sorted(found["date"][:10] for found in environments if found.get("date"))
    span = dates[0] if dates[:1] == dates[-1:] and dates else " to ".join([*dates[:1], *dates[-1:]])
    commands = list(dict.fromkeys(found["command"] for found in environments if found.get("command")))
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    device = recorded("device")
    processor = recorded("processor")
    told = {
        "report": command,
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d} by pfa-convert {installed_version('pfa-convert')}",
        "runs": f"{len(begun)}, {span}" if span else str(len(begun)),
        "first run's command": commands[0] + more if commands else "",
        "versions": versions,
        "device": f"{device} ({processor})" if processor and processor != device else device,
        "threads": recorded("threads"),
    }
    return [(heading, text) for heading, text in told.items() if text]
