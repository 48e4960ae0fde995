"""The report: what the page holds, that it needs nothing else, and that nothing can break into it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from evaluation.figure import figures_json
from evaluation.streetworld import score_streetworld
from tests.workflows.report_pages import (
    EVEN,
    HOSTILE,
    ODD_NAME,
    Parsed,
    cells,
    figure,
    full_page,
    points,
    predictions_of,
    require_self_contained,
    rows,
)
from workflows.report import (
    MOST_POINTS,
    Link,
    Page,
    ReportError,
    curves,
    figure_tables,
    read_figures,
    render,
)


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_the_page_is_whole_and_self_contained_whatever_its_texts_are(text: str) -> None:
    page = render(full_page(text))
    parsed = require_self_contained(page)
    page.encode()  # a name that is no text has become one
    as_plain = require_self_contained(render(full_page()))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in as_plain.elements]
    assert [set(found) for _, found in parsed.elements] == [set(found) for _, found in as_plain.elements]
    # Title, heading, about, fact (2), command, settings, chart, column, protocol, scale, figure, unit,
    # ranking, legend, two pictures of 2 + 2, link's group and name.
    assert parsed.text.count(text.replace("\udcff", "?")) == 25


def test_an_empty_page_has_a_title_and_no_section() -> None:
    parsed = require_self_contained(render(Page(title="Run", about="nothing yet")))
    assert not parsed.all("section")
    assert "nothing yet" in parsed.text


def test_the_page_follows_the_reader_s_light_or_dark_and_fits_phones() -> None:
    page = render(full_page())
    assert "prefers-color-scheme: dark" in page
    assert Parsed(page).all("meta", name="viewport")


@pytest.mark.parametrize("target", ["javascript:alert(1)", "x/../../y z", ODD_NAME, "data:text/html,x"])
def test_links_are_relative_and_encoded(target: str) -> None:
    parsed = require_self_contained(
        render(Page(title="", about="", links=(Link(group="", name="x", target=target),)))
    )
    (href,) = [each["href"] for each in parsed.all("a") if not each["href"].startswith("#")]
    assert unquote(href) == target
    assert not set(href) & set(' <>"#?&:')


@pytest.mark.parametrize("target", ["/etc/passwd", "//host/x", "", "\\\\host\\x"])
def test_a_link_that_is_not_relative_is_refused(target: str) -> None:
    with pytest.raises(ReportError, match="not relative"):
        render(Page(title="", about="", links=(Link(group="", name="x", target=target),)))


def test_columns_stand_side_by_side_and_what_is_not_a_number_is_a_dash() -> None:
    tables = figure_tables(
        {
            "trained": [figure(value=0.1), figure("RMSE", 4.0)],
            "untrained": [figure(value=math.nan, count=0), figure("RMSE", 5.0)],
            "constant": [figure(value=3e-7, count=9)],
        }
    )
    assert [len(table.rows) for table in tables] == [2]
    page = render(Page(title="", about="", tables=tuple(tables)))
    assert cells(page) == [
        ["figure", "trained", "untrained", "constant", "unit", "of"],
        ["AbsRel", "0.1000", "-", "3.0e-07", "fraction", "9 / 0 / 9"],
        ["RMSE", "4.0000", "5.0000", "-", "fraction", "9 / 9 / -"],
    ]


def test_figures_that_were_counted_otherwise_never_share_a_row() -> None:
    tables = figure_tables(
        {
            "a": [figure(protocol="p", scale="median"), figure(protocol="q")],
            "b": [figure(protocol="p", scale="none"), replace(figure(protocol="q"), unit="m")],
        }
    )
    assert [(table.protocol, table.scale, table.columns) for table in tables] == [
        ("p", "median", ("a",)),
        ("q", "", ("a", "b")),
        ("p", "none", ("b",)),
    ]
    assert [row[:2] for row in tables[1].rows] == [("AbsRel", "fraction"), ("AbsRel", "m")]
    page = Parsed(render(Page(title="", about="", tables=tuple(tables)))).text
    assert "Scale: median" in page
    assert "Scale: none" in page


def test_every_figure_of_an_evaluation_is_shown_with_its_protocol(streets: Path) -> None:
    figures = score_streetworld(predictions_of(streets, EVEN), streets)
    parsed = Parsed(render(Page(title="", about="", tables=tuple(figure_tables({"run": figures})))))
    shown = cells(render(Page(title="", about="", tables=tuple(figure_tables({"run": figures})))))
    assert len(figures) > 100
    for each in figures:
        value = f"{each.value:.4f}" if abs(each.value) >= 5e-5 or each.value == 0 else f"{each.value:.1e}"
        value = "-" if math.isnan(each.value) else value
        assert [each.name, value, each.unit, f"{each.count}"] in shown
        assert each.protocol in parsed.text


def test_two_figures_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ReportError, match="a: two figures 'AbsRel' under 'p'"):
        figure_tables({"a": [figure(), figure(value=1.0)]})


def test_long_tables_after_the_first_are_closed() -> None:
    long = [figure(f"x{k}", protocol=p) for p in "pq" for k in range(40)]
    page = render(
        Page(title="", about="", tables=tuple(figure_tables({"a": [*long, figure("x", protocol="r")]})))
    )
    assert ["open" in found for found in Parsed(page).all("details")] == [True, False, True]


def test_figures_come_back_from_a_file(tmp_path: Path) -> None:
    written = [figure(scale="median"), figure("RMSE", math.nan, count=0)]
    (tmp_path / "f.json").write_text(figures_json(written))
    read = read_figures(tmp_path / "f.json")
    assert read[0] == written[0]
    assert math.isnan(read[1].value)
    assert replace(read[1], value=0.0) == replace(written[1], value=0.0)


GOOD = json.loads(figures_json([figure()]))[0]
NO_FIGURES = {
    "no file": None,
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "an object, as old scores were": b'{"AbsRel": 0.1}',
    "a number in the list": b"[1]",
    "a key is missing": json.dumps([{k: v for k, v in GOOD.items() if k != "protocol"}]).encode(),
    "a key too many": json.dumps([{**GOOD, "extra": 1}]).encode(),
    "a value that is text": json.dumps([{**GOOD, "value": "<b>"}]).encode(),
    "a name over\nlines": json.dumps([{**GOOD, "count": "1\n2"}]).encode(),
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("case", NO_FIGURES)
def test_a_file_without_figures_is_one_line(case: str, tmp_path: Path) -> None:
    path, content = tmp_path / "f.json", NO_FIGURES[case]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReportError) as caught:
        read_figures(path)
    assert str(caught.value).startswith(f"{path}: no figures")
    assert "\n" not in str(caught.value)


def test_curves_hold_as_many_points_as_rows() -> None:
    markup = curves([*rows(37, total=1.0, size=2.0), *rows(4, "validation", total=1.0)])
    assert points(markup, "polyline", "train") == [37, 37]
    assert points(markup, "polyline", "mean") == [37, 37]
    assert points(markup, "polyline", "validation") == [4]
    assert points(markup, "circle", "validation") == [4]
    assert Parsed(markup).text.count("last") == 2


def test_a_curve_goes_where_its_values_are() -> None:
    markup = curves([{"step": s, "kind": "train", "total": v} for s, v in ((0, 0.0), (100, 4.0), (50, 2.0))])
    (line,) = Parsed(markup).all("polyline", class_="train")
    (u0, v0), (u1, v1), (u2, v2) = (map(float, point.split(",")) for point in line["points"].split())
    assert u0 < u1
    assert v0 > v1  # up is more
    assert (u2, v2) == pytest.approx(((u0 + u1) / 2, (v0 + v1) / 2), abs=0.1)


def test_a_value_that_is_no_number_is_a_gap_and_is_counted() -> None:
    found = rows(9, total=1.0)
    found[3]["total"], found[5]["total"] = math.nan, math.inf
    markup = curves(found)
    assert points(markup, "polyline", "train") == [3, 3]
    assert points(markup, "circle", "train") == [1]  # row 4 stands alone
    assert "2 not finite" in markup
    assert "nan" not in "".join(each["points"] for each in Parsed(markup).all("polyline"))


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (math.nan,), (5e-324, 0.0), (1e300, -1e300)])
def test_curves_of_any_range_can_be_drawn(values: tuple[float, ...]) -> None:
    markup = curves([{"step": k, "kind": "train", "total": value} for k, value in enumerate(values)])
    coordinates = re.findall(r' (?:x|y|cx|cy|x1|y1)="([^"]*)"', markup)
    assert all(-1 <= float(each) <= 321 for each in coordinates)


def test_long_records_are_thinned_to_means_and_say_so() -> None:
    found = [{"step": k, "kind": "train", "total": float(k % 2)} for k in range(4 * MOST_POINTS)]
    markup = curves(found)
    assert points(markup, "polyline", "train") == [MOST_POINTS]
    assert "mean of 4 rows" in markup
    (line,) = Parsed(markup).all("polyline", class_="train")
    assert len({point.split(",")[1] for point in line["points"].split()}) == 1  # every mean is a half


@pytest.mark.parametrize(
    "row",
    [
        [1],
        {"kind": "train", "total": 1.0},
        {"step": "<b>", "kind": "train"},
        {"step": 1, "total": 1.0},
        {"step": 1, "kind": "train", "total": "high\nest"},
        {"step": 1, "kind": "train", "total": None},
        {"step": 10**400, "kind": "train", "total": 1.0},
    ],
)
def test_a_row_of_metrics_that_is_none_is_named_in_one_line(row: dict) -> None:
    with pytest.raises(ReportError, match="metrics, row 2: ") as caught:
        curves([*rows(1, total=1.0), row])
    assert "\n" not in str(caught.value)
