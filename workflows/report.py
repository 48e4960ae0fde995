"""A report as one HTML file that needs nothing else: no network, no script, no file beside it.

Pure functions from data to HTML. Every text is escaped where it enters the page (names come from users' files);
nothing that is handed in is taken for markup. Pictures are data URIs, curves inline SVG, and a content policy
in the head forbids whatever is not in the file. Only links leave it: relative paths that a reader may follow.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from evaluation.figure import Figure, nan_for_null
from pipeline.configuration import from_dict
from pipeline.errors import InstanceMotionError

LONG_TABLE = 14
"""Rows from which a table that is not the first is closed until it is asked for."""
MOST_POINTS = 800
"""Points of a curve; of longer records each point is a mean of neighbouring rows."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 170, 46, 10, 10, 22
"""Of a chart and its margins, SVG units."""


class ReportError(InstanceMotionError, ValueError):
    """What a report is made of cannot be read, or contradicts itself."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures under one protocol and one scale rule (empty where there is none to choose).

    rows: name, unit, and the figure of each column, None where it has none
    """

    protocol: str
    scale: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Figure | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture as a file's bytes; its name is shown, and read to those who do not see it."""

    name: str
    data: bytes
    media: str = "image/jpeg"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Panels that belong together, with what there is to say about them."""

    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Link:
    """A file near the page. target: path relative to the page's folder, not yet percent-encoded."""

    group: str
    name: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a page shows; what is empty is left out.

    facts:    names and values, shown below the title
    metrics:  rows as `training.record.read_metrics` returns them
    ranking:  how frames were ranked, over how many;  legend: what the colours of the panels mean
    """

    title: str
    about: str
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()
    configuration: str = ""
    metrics: Sequence[Mapping[str, Any]] = ()
    tables: tuple[Table, ...] = ()
    ranking: str = ""
    legend: tuple[Panel, ...] = ()
    best: tuple[Picture, ...] = ()
    worst: tuple[Picture, ...] = ()
    links: tuple[Link, ...] = ()


def render(page: Page) -> str:
    """The whole file.

    Raises:
        ReportError: a row of the metrics is none, or a link is not relative.
    """
    settings = _pre("To do it again", "\n".join(page.commands), " open")
    settings += _pre("All settings", page.configuration)
    sections = [
        ("figures", "Figures", _tables(page.tables)),
        ("pictures", "Best and worst pictures", _ranked(page)),
        ("training", "Training", curves(page.metrics)),
        ("configuration", "Configuration", settings),
        ("files", "Files", _links(page.links)),
    ]
    shown = [each for each in sections if each[2]]
    contents = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{made}</section>\n' for key, title, made in shown)
    facts = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in page.facts)
    header = f"<h1>{_text(page.title)}</h1><p>{_text(page.about)}</p><dl>{facts}</dl><nav>{contents}</nav>"
    return (
        '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{header}</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def figure_tables(columns: Mapping[str, Sequence[Figure]]) -> list[Table]:
    """One table for each protocol and scale rule: only figures that were counted alike stand in one row.

    Args:
        columns: name (trained, untrained, ...) -> figures; left out of tables in which it has none.

    Raises:
        ReportError: a column has two figures that cannot be told apart.
    """
    # (protocol, scale) -> (name, unit) -> column
    found: dict[tuple[str, str], dict[tuple[str, str], dict[str, Figure]]] = {}
    for column, figures in columns.items():
        for figure in figures:
            rows = found.setdefault((figure.protocol, figure.scale), {})
            cells = rows.setdefault((figure.name, figure.unit), {})
            if column in cells:
                raise ReportError(f"{column}: two figures {figure.name!r} under {figure.protocol!r}")
            cells[column] = figure
    tables = []
    for (protocol, scale), rows in found.items():
        present = tuple(each for each in columns if any(each in cells for cells in rows.values()))
        lines = tuple((*key, tuple(map(cells.get, present))) for key, cells in rows.items())
        tables.append(Table(protocol=protocol, scale=scale, columns=present, rows=lines))
    return tables


def read_figures(path: Path) -> list[Figure]:
    """Figures as `evaluation.figure.figures_json` writes them; null becomes NaN.

    Raises:
        ReportError: not such a file; one line with the remedy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, list):
            raise ReportError(f"expected a list, found {type(data).__name__}")
        return [from_dict(Figure, nan_for_null(row), f"figure {n}") for n, row in enumerate(data, 1)]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ReportError(f"{path}: no figures as `evaluate ... --json` prints them ({what})") from None


def curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A chart (inline SVG) for every value that was logged, against steps; empty without rows.

    A thin line holds all rows of training (means of them beyond MOST_POINTS), a thick one their running mean;
    validation has dots. A value that is not finite is a gap, and counted.

    Args:
        metrics: {"step": int, "kind": "train" or "validation", name: number, ...}, see `training.record`.

    Raises:
        ReportError: a row is something else.
    """
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number, row in enumerate(metrics, 1):
        if not isinstance(row, Mapping) or not isinstance(row.get("step"), int) or "kind" not in row:
            raise ReportError(f"metrics, row {number}: expected step, kind and values; delete the row")
        kind, step = "train" if row["kind"] == "train" else "validation", _number(row, "step", number)
        for name in row:
            if name not in ("step", "kind"):
                chart = charts.setdefault(name, {"train": [], "validation": []})
                chart[kind].append((step, _number(row, name, number)))
    key = '<span class="train">training</span> (thin: as logged; thick: running mean over a tenth)'
    if any(each["validation"] for each in charts.values()):
        key += ', <span class="validation">validation</span> (dots)'
    drawn = "".join(_chart(name, kinds) for name, kinds in charts.items())
    return f'<p class="note">Against steps: {key}.</p><div class="charts">{drawn}</div>' if drawn else ""


def _text(text: str) -> str:
    """Text as HTML; bytes of a file's name that are no text (lone surrogates) become question marks."""
    return escape(text.encode("utf-8", "replace").decode(), quote=True)


def _number(row: Mapping[str, Any], name: str, number: int) -> float:
    value = row[name]
    # JSON's whole numbers can be larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or 1e300 < abs(value) < math.inf:
        raise ReportError(f"metrics, row {number}: {name} is {value!r:.40}, no number; delete the row")
    return float(value)


def _cell(figure: Figure | None) -> str:
    """As `figures_table` prints it, unless that would make a zero of what is none."""
    if figure is None or not math.isfinite(figure.value):
        return "<td>-</td>"
    shown = f"{figure.value:.1e}" if 0 < abs(figure.value) < 5e-5 else f"{figure.value:.4f}"
    return f'<td title="{figure.value!r}">{shown}</td>'


def _tables(tables: Sequence[Table]) -> str:
    drawn = ""
    for number, table in enumerate(tables):
        opened = "" if number and len(table.rows) > LONG_TABLE else " open"
        scale = f"<br>Scale: {_text(table.scale)}" if table.scale else ""
        columns = ("figure", *table.columns, "unit", "of")
        head = "".join(f'<th scope="col">{_text(name)}</th>' for name in columns)
        drawn += f'<details{opened}><summary>{_text(table.protocol)}{scale}</summary><div class="scroll">'
        drawn += f"<table><thead><tr>{head}</tr></thead>{_bodies(table)}</table></div></details>"
    return f'<div class="tables">{drawn}</div>' if drawn else ""


def _bodies(table: Table) -> str:
    """Rows whose names end alike ("AbsRel, object", "RMSE, object") stand together."""
    markup, before = "<tbody>", None
    for name, unit, cells in table.rows:
        ending = name.partition(", ")[2]
        markup += "</tbody><tbody>" if before not in (None, ending) else ""
        before = ending
        counts = [f"{each.count}" if each else "-" for each in cells]
        of = " / ".join(counts if len(set(counts)) > 1 else counts[:1])
        markup += f'<tr><th scope="row">{_text(name)}</th>{"".join(map(_cell, cells))}'
        markup += f'<td class="unit">{_text(unit)}</td><td class="of">{of}</td></tr>'
    return markup + "</tbody>"


def _ranked(page: Page) -> str:
    legend = "".join(f'<p class="note legend">{_panel(each)} {_text(each.name)}</p>' for each in page.legend)
    markup = f'<p class="note">{_text(page.ranking)}</p>{legend}' if page.best or page.worst else ""
    for key, title, pictures in (("best", "Best", page.best), ("worst", "Worst", page.worst)):
        drawn = "".join(map(_picture, pictures))
        markup += f'<div id="{key}"><h3>{title}</h3>{drawn}</div>' if drawn else ""
    return markup


def _pre(title: str, text: str, opened: str = "") -> str:
    return f"<details{opened}><summary>{title}</summary><pre>{_text(text)}</pre></details>" if text else ""


def _picture(picture: Picture) -> str:
    panels = "".join(f"<div>{_panel(each)}<span>{_text(each.name)}</span></div>" for each in picture.panels)
    caption = f"<strong>{_text(picture.title)}</strong> {_text(picture.caption)}"
    return f'<figure class="picture"><figcaption>{caption}</figcaption><div>{panels}</div></figure>'


def _panel(panel: Panel) -> str:
    data = base64.b64encode(panel.data).decode()
    return f'<img alt="{_text(panel.name)}" src="data:{_text(panel.media)};base64,{data}">'


def _links(links: Sequence[Link]) -> str:
    """A line a group, in the order of their first links."""
    groups: dict[str, list[str]] = {}
    for link in links:
        if not link.target or link.target.startswith(("/", "\\")):
            raise ReportError(f"link {link.target!r} is not relative; give a path from the page's folder")
        # A colon is encoded as well: nothing here can name a scheme, such as javascript.
        address = quote(os.fsencode(link.target))
        groups.setdefault(link.group, []).append(f'<a href="{address}">{_text(link.name)}</a>')
    lines = "".join(f"<div><dt>{_text(each)}</dt><dd>{' '.join(a)}</dd></div>" for each, a in groups.items())
    return f'<dl class="links">{lines}</dl>' if groups else ""


def _chart(name: str, kinds: Mapping[str, list[tuple[float, float]]]) -> str:
    """(step, value) points of training and validation -> a figure."""
    train, each = _thinned(kinds["train"])
    held_out, _ = _thinned(kinds["validation"])
    everything = np.concatenate([train, held_out])
    finite = everything[np.isfinite(everything[:, 1])]
    lost = sum(not math.isfinite(value) for points in kinds.values() for _, value in points)
    last = (kinds["train"] or kinds["validation"])[-1][1]
    notes = [f"last {last:.4g}", *([f"{lost} not finite"] if lost else [])]
    notes += [f"a point: mean of {each} rows"] if each > 1 else []
    markup = ""
    if len(finite):
        steps, x = _axis(finite[:, 0], LEFT, WIDTH - RIGHT)
        values, y = _axis(finite[:, 1], HEIGHT - BOTTOM, TOP)
        for tick in values:
            markup += f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            markup += f'<text class="y" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">{tick:.6g}</text>'
        for tick in steps:
            markup += f'<text x="{x(tick):.1f}" y="{HEIGHT - 6}">{tick:.6g}</text>'
        smooth = _running_mean(train[np.isfinite(train[:, 1])])
        for points, kind in ((train, "train"), (smooth, "mean"), (held_out, "validation")):
            markup += _curve(points, kind, x, y)
    said = f"{_text(name)} <small>{', '.join(notes)}</small>"
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(name)} against steps"'
    return f"<figure><figcaption>{said}</figcaption><svg {box}>{markup}</svg></figure>"


def _curve(points: np.ndarray, kind: str, x: Callable, y: Callable) -> str:
    """(N, 2) points as lines between neighbours that are finite; dots where there is no line, or for all."""
    markup, finite = "", np.isfinite(points[:, 1])
    for part in np.split(np.arange(len(points)), np.flatnonzero(~finite)):
        run = [(x(step), y(value)) for step, value in points[part[finite[part]]]]
        if len(run) > 1:
            path = " ".join(f"{u:.1f},{v:.1f}" for u, v in run)
            markup += f'<polyline class="{kind}" points="{path}"/>'
        if len(run) == 1 or kind == "validation":
            markup += "".join(f'<circle class="{kind}" cx="{u:.1f}" cy="{v:.1f}" r="2.2"/>' for u, v in run)
    return markup


def _axis(values: np.ndarray, start: float, end: float) -> tuple[list[float], Callable[[float], float]]:
    """Three to six round numbers around the values, and where a value lies between start and end."""
    low, high = float(values.min()), float(values.max())
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1e-300):
        around = abs(low) / 2 if abs(low) > 1e-300 else 1.0
        low, high = low - around, high + around
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * k for k in range(first, last + 1)]
    return ticks, lambda value: start + (value / step - first) / (last - first) * (end - start)


def _thinned(points: list[tuple[float, float]]) -> tuple[np.ndarray, int]:
    """At most MOST_POINTS (step, value) means of neighbouring points, and of how many each is the mean."""
    each = max(1, -(-len(points) // MOST_POINTS))
    starts = np.arange(0, len(points), each)
    counts = np.diff([*starts, len(points)])
    return np.add.reduceat(np.array(points, float).reshape(-1, 2), starts) / counts[:, None], each


def _running_mean(points: np.ndarray) -> np.ndarray:
    """(N, 2) each value the mean of the tenth of all points around it; nothing for few points."""
    reach = len(points) // 20
    if not reach:
        return points[:0]
    values, ones = (
        np.convolve(each, np.ones(2 * reach + 1), "same") for each in (points[:, 1], points[:, 0] ** 0)
    )
    return np.stack([points[:, 0], values / ones], axis=1)


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --raised: #f5f6f8; --ink: #1c2025; --faint: #5c6570;
  --line: #dde1e6; --train: #2358a6; --held-out: #b9501a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --raised: #1d2127; --ink: #e3e6ea;
  --faint: #9aa3ae; --line: #323941; --train: #82b1f4; --held-out: #f0a36c; } }
* { box-sizing: border-box; } h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; } h3 { font-size: 1rem; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem clamp(1rem, 4vw, 2.5rem) 4rem; overflow-wrap: anywhere;
  background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
header p { margin: .4rem 0 1rem; color: var(--faint); } a { color: var(--train); margin-right: 1rem; display: inline-block; }
nav { margin-top: 1.25rem; } dl, dd, figure { margin: 0; } .note { margin: .25rem 0 .75rem; max-width: 60rem; }
dt, .note, small, summary, .unit, .of, span { color: var(--faint); font-size: .85rem; }
dl, .charts, .picture > div { display: grid; gap: .75rem 1.5rem; --least: 10rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)); }
.charts { --least: 17rem; } .picture > div { --least: 26rem; gap: .6rem; }
.links { display: block; } .links dt { flex: 0 0 12rem; }
.links div { display: flex; flex-wrap: wrap; padding: .3rem 0; border-bottom: 1px solid var(--line); }
summary { cursor: pointer; padding: .3rem 0; } .scroll, pre { overflow-x: auto; overflow-wrap: normal; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: 4px; padding: .75rem 1rem;
  font: .8rem/1.5 ui-monospace, monospace; margin: .25rem 0 1rem; }
.tables { columns: 2 30rem; column-gap: 2.5rem; } .tables > * { break-inside: avoid; margin-bottom: 1.25rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem 0 .2rem .9rem; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child { padding-left: 0; text-align: left; white-space: normal; min-width: 7rem; position: sticky;
  left: 0; background: var(--ground); } tbody { border-bottom: 1px solid var(--line); }
thead th { white-space: normal; font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
td.unit, thead th:nth-last-child(2) { text-align: left; } figcaption { font-size: .9rem; margin-bottom: .3rem; }
svg { display: block; } svg text { fill: var(--faint); font-size: 10px; text-anchor: middle; }
svg text.y { text-anchor: end; } line { stroke: var(--line); } circle { fill: var(--train); }
polyline { fill: none; stroke: var(--train); stroke-linejoin: round; } polyline.train { opacity: .45; }
polyline.mean { stroke-width: 2; } polyline.validation { stroke: var(--held-out); stroke-width: 1.5; }
circle.validation { fill: var(--held-out); } span.train { color: var(--train); }
span.validation { color: var(--held-out); } .picture { margin-bottom: 1.75rem; }
.picture img { display: block; width: 100%; } .legend img { height: .8rem; width: 9rem; }
"""
