"""One result, and how results are printed: as a table for people, as JSON for programs.

A number without its protocol means nothing: every figure carries what it counts, over how much, and
what scale the prediction was given before it was compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One result.

    value: NaN where there is nothing to count
    protocol: what is counted, and how
    count: what it is an average over
    scale: how the prediction's unknown scale was chosen; empty where there is none to choose
    """

    name: str
    value: float
    unit: str
    protocol: str
    count: int
    scale: str = ""


def figures_json(figures: Iterable[Figure]) -> str:
    """A list of objects, one a figure; what is not a number is null."""
    rows = [asdict(figure) for figure in figures]
    for row in rows:
        row["value"] = row["value"] if math.isfinite(row["value"]) else None
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def nan_for_null(row: Any) -> Any:
    """A row as `figures_json` wrote it, null read as NaN again; anything else as it is."""
    return {**row, "value": math.nan} if isinstance(row, dict) and row.get("value", 0) is None else row


def figures_table(figures: Iterable[Figure]) -> str:
    """One line a figure, under a line for each protocol and scale rule that follow each other."""
    lines, before = [], None
    figures = list(figures)
    width = max((len(figure.name) for figure in figures), default=0)
    for figure in figures:
        rule = figure.protocol + (f"; scale: {figure.scale}" if figure.scale else "")
        if rule != before:
            lines.append(f"# {rule}")
            before = rule
        value = f"{figure.value:.4f}" if math.isfinite(figure.value) else "-"
        lines.append(f"{figure.name:{width}}  {value:>10} {figure.unit} (of {figure.count})")
    return "\n".join(lines)
