"""The paper's Tables 2 to 6 as published, and what was measured here beside them.

A measured file is JSON: {"table": 4, "row": "ResNet18 K", "figures": [...]}, figures as `evaluate --json`
prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workflows.tables import read_measured, tables_json, tables_text


@dataclass(frozen=True)
class Arguments:
    table: tuple[int, ...] = ()
    """Numbers of the tables to print; all of them unless given."""
    measured: tuple[Path, ...] = ()
    """Files of measured figures, each of one row."""
    json: bool = False
    """Print the tables as JSON."""


def run(arguments: Arguments) -> int:
    measured = [read_measured(path) for path in arguments.measured]
    if arguments.json:
        print(tables_json(arguments.table, measured), end="")
    else:
        print(tables_text(arguments.table, measured))
    return 0
