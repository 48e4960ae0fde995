"""The paper's tables as published, and beside them what was measured here.

A measured file is JSON: {"table": 4, "row": "ResNet18 K", "figures": [...]}, with figures as
`evaluation.figure.figures_json` writes them. Figures find their column by name, and where a table has
columns of several sequences, by the sequence that their name or protocol names. Files of one row fill one
line as long as they have no column in common; what they have in common, such as seeds, fills further lines.

A figure of another benchmark, or of a part of it, is shown with a mark: it is not the published quantity.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.figure import Figure, nan_for_null
from evaluation.published import TABLES, Column, Row, Table, published_table
from pipeline.configuration import from_dict, to_dict
from pipeline.errors import ConfigError, InstanceMotionError

MAX_MEASURED_BYTES = 1 << 24
OTHER, PART = "*", "~"
UNREAD, NOT_RUN = "?", "not run"
_LEGEND = (
    f"{UNREAD} cannot be read in our copy of the paper   - none   (S) with semantic knowledge   "
    f"{OTHER} other protocol   {PART} not the whole benchmark"
)
_BETTER = {"lower": "lower is better", "higher": "higher is better"}


class MeasuredError(InstanceMotionError, ValueError):
    """A file of measured figures is missing, damaged or about something else."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one file holds: figures of a row."""

    table: int
    row: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measured figure in its column.

    value: in the column's unit
    other: the figure's protocol is not the benchmark of the row
    part:  it counts another number of images, snippets or segments than the benchmark has
    """

    value: float
    figure: Figure
    other: bool
    part: bool

    @property
    def marks(self) -> str:
        return (OTHER if self.other else "") + (PART if self.part else "")


Line = Mapping[int, Cell]
"""Cells by the index of their column."""


def measured_of(given: str) -> Measured:
    """What a user gives: FILE, which names its table and row, or TABLE/ROW=FILE, a list of figures alone.

    Raises:
        MeasuredError, ConfigError: see `read_measured`.
    """
    named = re.fullmatch(r"(\d+)/([^=]+)=(.+)", given)
    return read_measured(Path(named[3]), (int(named[1]), named[2])) if named else read_measured(Path(given))


def read_measured(path: Path, place: tuple[int, str] | None = None) -> Measured:
    """One file, checked: its table and row exist, and some of its figures belong to them.

    Args:
        place: number of the table and name of the row, where the file holds figures alone.

    Raises:
        MeasuredError: the file is missing or damaged, or has no figure of its table.
        ConfigError: no such table or row; the message lists what there is.
    """
    try:
        if path.stat().st_size > MAX_MEASURED_BYTES:
            raise MeasuredError(f"{path}: larger than {MAX_MEASURED_BYTES} bytes; these are no figures")
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MeasuredError(f"{path}: {error.strerror}; give a JSON file of measured figures") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, MeasuredError):
            raise
        raise MeasuredError(f"{path}: not JSON ({' '.join(str(error).split())})") from None
    if place is not None:
        data = {"table": place[0], "row": place[1], "figures": data}
    measured = _measured(path, data)
    try:
        row_cells(measured)
    except InstanceMotionError as error:
        raise type(error)(f"{path}: {error}") from None
    return measured


def row_cells(measured: Measured) -> dict[int, Cell]:
    """A file's figures in the columns of its table.

    Raises:
        ConfigError: no such table or row.
        MeasuredError: no figure of the table, two of one column, or one in another unit.
    """
    table = published_table(measured.table)
    row = table.row(measured.row)
    cells: dict[int, Cell] = {}
    for index, column in enumerate(table.columns):
        fitting = [figure for figure in measured.figures if _belongs(figure, table, column)]
        if len(fitting) > 1:
            raise MeasuredError(
                f"{len(fitting)} figures for column {column.name} of Table {table.number}; "
                "give each run, or each rule, a file of its own"
            )
        if fitting:
            cells[index] = _cell(fitting[0], table, column, row)
    if not cells:
        raise MeasuredError(f"has no figure of Table {table.number}; expected {_expected(table)}")
    return cells


def measured_lines(table: Table, measured: Iterable[Measured]) -> Mapping[str, Sequence[Line]]:
    """Row's name -> its measured lines, in the order of the files."""
    lines: dict[str, list[dict[int, Cell]]] = defaultdict(list)
    for each in measured:
        if each.table != table.number:
            continue
        cells = row_cells(each)
        free = next((line for line in lines[each.row] if not line.keys() & cells.keys()), None)
        if free is None:
            lines[each.row].append(cells)
        else:
            free.update(cells)
    return dict(lines)


def tables_text(numbers: Sequence[int] = (), measured: Sequence[Measured] = ()) -> str:
    """The tables for people; no number: all of them.

    Raises:
        ConfigError: no such table.
    """
    parts = [_table_text(table, measured_lines(table, measured)) for table in _chosen(numbers)]
    return "\n\n".join([*parts, _LEGEND])


def tables_json(numbers: Sequence[int] = (), measured: Sequence[Measured] = ()) -> str:
    """The tables for programs: published figures as printed (text, null: unreadable), measured ones whole.

    Raises:
        ConfigError: no such table.
    """
    found = []
    for table in _chosen(numbers):
        lines = measured_lines(table, measured)
        data = to_dict(table)
        for row in data["rows"]:
            row["measured"] = [_line_data(table, line) for line in lines.get(row["name"], [])]
        found.append(data)
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _chosen(numbers: Sequence[int]) -> list[Table]:
    return [published_table(number) for number in dict.fromkeys(numbers or TABLES)]


def _measured(path: Path, data: Any) -> Measured:
    """What a file says, as `Measured`; null is written for what is not a number."""
    keys = ("table", "row", "figures")
    if not isinstance(data, dict) or not all(key in data for key in keys):
        raise MeasuredError(
            f'{path}: expected {{"table": 4, "row": "ResNet18 K", "figures": [...]}}, with figures as '
            "`evaluate --json` prints them"
        )
    if isinstance(data["figures"], list):
        data["figures"] = [nan_for_null(each) for each in data["figures"]]
    try:
        return from_dict(Measured, data, "measured")
    except (ConfigError, TypeError) as error:
        reason = str(error).removeprefix("Figure.__init__() ")
        raise MeasuredError(f"{path}: {reason}; give figures as `evaluate --json` prints them") from None


def _belongs(figure: Figure, table: Table, column: Column) -> bool:
    """Whether a figure is one of a column: by its name, and its sequence where it matters.

    What is of several sequences together belongs to none of them.
    """
    sequences = {other.sequence for other in table.columns} - {""}
    names = {figure.name, *(figure.name.removesuffix(f", {sequence}") for sequence in sequences)}
    if column.figure not in names:
        return False
    text = f"{figure.name}; {figure.protocol}"
    named = {s for s in sequences if re.search(rf"(?<![\w.]){re.escape(s)}(?!\w|\.\d)", text)}
    return named == ({column.sequence} - {""})


def _cell(figure: Figure, table: Table, column: Column, row: Row) -> Cell:
    value = figure.value
    if (figure.unit, column.unit) == ("fraction", "%"):
        value *= 100
    elif figure.unit != column.unit:
        raise MeasuredError(
            f"{figure.name} is in {figure.unit!r}, column {column.name} of Table {table.number} in {column.unit!r}"
        )
    whole = table.whole(row, column)
    return Cell(
        value=value,
        figure=figure,
        other=row.benchmark.says not in figure.protocol,
        part=whole is not None and figure.count != whole,
    )


def _expected(table: Table) -> str:
    names = ", ".join(repr(name) for name in dict.fromkeys(column.figure for column in table.columns))
    sequences = list(dict.fromkeys(column.sequence for column in table.columns if column.sequence))
    if not sequences:
        return names
    return f"{names}, each with its sequence ({' or '.join(sequences)}) in its name or protocol"


def _table_text(table: Table, lines: Mapping[str, Sequence[Line]]) -> str:
    """Title and protocol, the rows, then what each measured figure counts."""
    head = [["row", "training", "", *(column.name for column in table.columns)]]
    head += [["", "", "", *_units(table)]] if any(_units(table)) else []
    body = [cells for row in table.rows for cells in _row_cells(table, row, lines.get(row.name, []))]
    grid = head + body
    widths = [max(len(cells[i]) for cells in grid) for i in range(len(grid[0]))]
    text = [
        f"Table {table.number}: {table.title}",
        f"# {table.protocol}",
        f"# {_directions(table)}",
        *(_aligned(cells, widths) for cells in grid),
    ]
    for row in table.rows:
        if row.recipes and row.name not in lines:
            text.append(f"# recipe of {_label(row)}: {' or '.join(row.recipes)} {row.options}".rstrip())
        for line in lines.get(row.name, []):
            text += [f"# {_label(row)}, here: {note}" for note in _notes(table, row, line)]
    return "\n".join(text)


def _row_cells(table: Table, row: Row, lines: Sequence[Line]) -> list[list[str]]:
    """A row as published, and below it the measured lines, or that there is none."""
    published = [UNREAD if text is None else text for text in row.figures]
    training = ", ".join(part for part in (row.backbone, row.training) if part)
    found = [[_label(row), training, "published", *published]]
    for line in lines:
        found.append(["", "", "here", *(_shown(table, line, index) for index in range(len(published)))])
    if not lines:
        found.append(["", "", "here", NOT_RUN, *[""] * (len(published) - 1)])
    return found


def _shown(table: Table, line: Line, index: int) -> str:
    if index not in line:
        return NOT_RUN
    cell = line[index]
    digits = table.decimals(index)
    return (f"{cell.value:.{digits}f}" if math.isfinite(cell.value) else "-") + cell.marks


def _label(row: Row) -> str:
    """The name, which a measured file gives; whose row it is where the name does not say."""
    return row.name if row.method in row.name else f"{row.name} ({row.method.lower()})"


def _notes(table: Table, row: Row, line: Line) -> list[str]:
    """The protocol and count of a line's figures, those of one rule together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for index, cell in sorted(line.items()):
        figure = cell.figure
        rule = figure.protocol + (f"; scale: {figure.scale}" if figure.scale else "")
        aside = f"{OTHER} other protocol, not {row.benchmark.name}: " if cell.other else ""
        if cell.part:
            aside += f"{PART} not the whole benchmark, {table.whole(row, table.columns[index])}: "
        groups[f"{aside}{rule} (of {figure.count})"].append(table.columns[index].name)
    return [f"{', '.join(names)}: {rule}" for rule, names in groups.items()]


def _units(table: Table) -> list[str]:
    return ["" if column.unit == "fraction" else column.unit for column in table.columns]


def _directions(table: Table) -> str:
    """Which columns are better when lower, which when higher."""
    groups: dict[str, list[str]] = defaultdict(list)
    for column in table.columns:
        groups[column.better].append(column.name)
    if len(groups) == 1:
        return _BETTER[next(iter(groups))]
    return "; ".join(f"{', '.join(names)}: {_BETTER[better]}" for better, names in groups.items())


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    left = [f"{cell:<{width}}" for cell, width in zip(cells[:3], widths[:3], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cells[3:], widths[3:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def _line_data(table: Table, line: Line) -> dict[str, Any]:
    """A measured line by the names of its columns."""
    return {
        table.columns[index].name: {
            "value": cell.value if math.isfinite(cell.value) else None,
            "name": cell.figure.name,
            "protocol": cell.figure.protocol,
            "scale": cell.figure.scale,
            "count": cell.figure.count,
            "other_protocol": cell.other,
            "part": cell.part,
        }
        for index, cell in sorted(line.items())
    }
