"""Everything on synthetic streets, offline, in minutes: render, build, remask, inspect, train, predict, evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from workflows.quickstart import QuickstartConfig, quickstart


@dataclass(frozen=True)
class Arguments:
    out: tyro.conf.Positional[Path] = Path("quickstart")
    """Folder for everything that it makes."""
    settings: QuickstartConfig = field(default_factory=QuickstartConfig)


def run(arguments: Arguments) -> int:
    quickstart(arguments.out, arguments.settings)
    return 0
