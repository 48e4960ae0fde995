"""The paper's Tables 2 to 6 as published, and what was measured here beside them.

    instance-motion evaluate depth PREDICTIONS kitti_raw/ --split eigen_test_files.txt --out depth.json
    instance-motion tables --measured "4/ResNet18 K=depth.json"

A file may name its table and row itself: {"table": 4, "row": "ResNet18 K", "figures": [...]}.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflows.tables import measured_of, tables_json, tables_text


@dataclass(frozen=True)
class Arguments:
    table: tuple[int, ...] = ()
    """Numbers of the tables to print; all of them unless given."""
    measured: tuple[str, ...] = ()
    """TABLE/ROW=FILE of figures that `evaluate --out` wrote; or a FILE that names its table and row."""
    json: bool = False
    """Print the tables as JSON."""


def run(arguments: Arguments) -> int:
    measured = [measured_of(each) for each in arguments.measured]
    if arguments.json:
        print(tables_json(arguments.table, measured), end="")
    else:
        print(tables_text(arguments.table, measured))
    return 0
