"""The report: what the page holds, that it needs nothing else, and that nothing can break into it."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest

from evaluation.figure import Figure, figures_json
from evaluation.predictions import (
    ClipPrediction,
    ObjectMotions,
    PredictionError,
    PredictionIndex,
    write_clip,
    write_index,
)
from evaluation.streetworld import score_streetworld
from pipeline.errors import ConfigError, InstanceMotionError, ShardError
from pipeline.streetworld.truth import TRUTH_FILE, read_truth
from tests.evaluation.made import truth_as_prediction
from workflows.commands import report as command
from workflows.commands.report import Arguments
from workflows.report import (
    MOST_POINTS,
    Link,
    Page,
    Panel,
    Picture,
    ReportError,
    Table,
    curves,
    figure_tables,
    read_figures,
    render,
)
from workflows.report_pictures import (
    LIMIT,
    NOT_COUNTED,
    RIGHT,
    TOO_DEEP,
    TOO_NEAR,
    Ranking,
    best_and_worst,
    error_colours,
    error_map,
)

VOID = {"meta", "img", "br"}
HOSTILE = "</title></style><script>alert(1)</script>\"' onload='x' <img src=http://a.b/c> &amp; \udcff"
ODD_NAME = "a b#1?<i>&%41.json"


class Parsed(HTMLParser):
    """Elements with their attributes, all text, and a complaint where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself in SVG only"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key.strip("_")) == value for key, value in attributes.items())
        ]


def figure(name: str = "AbsRel", value: float = 0.125, protocol: str = "p", scale: str = "", count: int = 9):
    return Figure(name=name, value=value, unit="fraction", protocol=protocol, count=count, scale=scale)


def rows(count: int, kind: str = "train", /, **values: float) -> list[dict]:
    return [
        {"step": 10 * k, "kind": kind, **{name: v + math.sin(k) for name, v in values.items()}}
        for k in range(count)
    ]


def full_page(text: str = "plain") -> Page:
    """Something in every field, with `text` wherever a text can stand."""
    panel = Panel(name=text, data=b"picture")
    picture = Picture(title=text, caption=text, panels=(panel, panel))
    named = replace(figure(text, protocol=text, scale=text), unit=text)
    return Page(
        title=text,
        about=text,
        facts=((text, text),),
        commands=(text,),
        configuration=text,
        metrics=[*rows(30, **{text: 1.0}), *rows(3, "validation", **{text: 1.0})],
        tables=tuple(figure_tables({text: [named]})),
        ranking=text,
        legend=(panel,),
        best=(picture,),
        worst=(picture,),
        links=(Link(group=text, name=text, target="f/" + text.replace("/", "")),),
    )


def require_self_contained(page: str) -> Parsed:
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "use", "image"}
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "srcset" not in attributes
        assert "style" not in attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        href = attributes.get("href", "#x")
        assert not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|/|\\", href), href
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = parsed.all("meta", http_equiv="") or [
        each for each in parsed.all("meta") if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy["content"].startswith("default-src 'none'")
    return parsed


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


def cells(page: str) -> list[list[str]]:
    """Text of the cells of every table row of a page without other markup inside them."""
    found = re.findall(r"<tr>(.*?)</tr>", page)
    return [[Parsed(each).text for each in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in found]


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


def points(markup: str, tag: str, kind: str) -> list[int]:
    """Points of each curve of a kind."""
    parsed = Parsed(markup)
    if tag == "circle":
        return [len(parsed.all("circle", class_=kind))]
    return [len(found["points"].split()) for found in parsed.all("polyline", class_=kind)]


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


# Best and worst. How much the left half of each frame is too deep: the order of AbsRel, by construction.
EVEN: dict[str, list[float]] = {"test_0000": [0.3] * 14, "test_0001": [0.3] * 6, "test_0002": [0.3] * 6}


def predictions_of(streets: Path, too_deep: Mapping[str, list[float]]) -> list[ClipPrediction]:
    clips = []
    for name, errors in too_deep.items():
        clip = truth_as_prediction(read_truth(streets / name / TRUTH_FILE), name, scale=5.0)
        inverse_depth = clip.inverse_depth.copy()
        half = inverse_depth.shape[2] // 2
        inverse_depth[:, :, :half] /= 1 + np.array(errors)[:, None, None]
        clips.append(replace(clip, inverse_depth=inverse_depth))
    return clips


def with_errors(**changed: dict[int, float]) -> dict[str, list[float]]:
    return {name: [changed.get(name, {}).get(k, e) for k, e in enumerate(row)] for name, row in EVEN.items()}


def places(pictures: tuple[Picture, ...]) -> list[str]:
    return [each.caption.split(" (")[0] for each in pictures]


@pytest.fixture(scope="module")
def ranking(streets: Path, street_shards: Path) -> Ranking:
    errors = with_errors(test_0000={5: 0.0, 9: 4.0}, test_0001={2: 0.02}, test_0002={1: 0.05, 4: 9.0, 5: 8.0})
    return best_and_worst(predictions_of(streets, errors), street_shards, streets, count=2)


def test_best_and_worst_frames_are_in_order_and_no_clip_is_shown_twice(ranking: Ranking) -> None:
    assert places(ranking.best) == ["test_0000, frame 5", "test_0001, frame 2"]
    assert places(ranking.worst) == ["test_0002, frame 4", "test_0000, frame 9"]
    numbers = [float(each.title.split()[-1]) for each in (*ranking.best, *ranking.worst)]
    assert numbers[0] < numbers[1] < numbers[3] < numbers[2]
    assert numbers[0] < 1e-3
    assert [each.title.split(":")[0] for each in (*ranking.best, *ranking.worst)] == [
        *("Best 1", "Best 2", "Worst 1", "Worst 2")
    ]
    assert "26 frames of 3 clips" in ranking.text


def test_the_page_puts_best_and_worst_under_their_names(ranking: Ranking) -> None:
    page = render(Page(title="", about="", best=ranking.best, worst=ranking.worst, ranking=ranking.text))
    best, worst = page.index('<div id="best">'), page.index('<div id="worst">')
    assert best < page.index("Best 1: AbsRel") < worst < page.index("Worst 1: AbsRel")
    assert "test_0002, frame 4" not in page[best:worst]
    assert len(Parsed(page).all("img")) == 4 * 4


def test_the_mean_over_frames_is_the_figure_of_the_evaluation(ranking: Ranking, streets: Path) -> None:
    errors = with_errors(test_0000={5: 0.0, 9: 4.0}, test_0001={2: 0.02}, test_0002={1: 0.05, 4: 9.0, 5: 8.0})
    figures = {each.name: each for each in score_streetworld(predictions_of(streets, errors), streets)}
    assert f"mean {figures['AbsRel, all'].value:.4f}" in ranking.text


def test_a_picture_has_image_truth_prediction_and_error(ranking: Ranking, street_shards: Path) -> None:
    from pipeline.shards.reader import ShardSet

    worst = ranking.worst[0]
    assert [each.name for each in worst.panels] == ["image", "true depth", "predicted depth", "error"]
    image, _, _, error = (
        np.asarray(cv2.imdecode(np.frombuffer(each.data, np.uint8), cv2.IMREAD_COLOR))[..., ::-1]
        for each in worst.panels
    )
    assert image.shape == error.shape == (64, 208, 3)
    with ShardSet(street_shards) as shards:
        expected = shards.image(shards.clip("test_0002"), 4)
    assert np.abs(image.astype(int) - expected).mean() < 6
    # The left half is too deep against the right one, whatever the median says.
    redder = (error[..., 0].astype(int) - error[..., 2]).mean(axis=0)
    assert redder[:104].mean() > redder[104:].mean() + 50


def test_a_frame_is_not_both_best_and_worst(streets: Path, street_shards: Path) -> None:
    (clip,) = predictions_of(streets, {"test_0001": EVEN["test_0001"]})
    found = best_and_worst([clip], street_shards, streets, count=3)
    assert len(found.best) == len(found.worst) == 1
    assert places(found.best) != places(found.worst)
    single = replace(
        clip,
        inverse_depth=clip.inverse_depth[:1],
        labels=clip.labels[:1],
        later_T_earlier=clip.later_T_earlier[:0],
        objects=ObjectMotions.empty(),
        timestamps_s=clip.timestamps_s[:1],
    )
    found = best_and_worst([single], street_shards, streets, count=3)
    assert places(found.best) == ["test_0001, frame 0"]
    assert not found.worst


def test_error_colours_say_near_right_and_deep() -> None:
    colours = error_colours(np.array([-9, -LIMIT, 0, LIMIT, 9]))
    assert [tuple(map(int, each)) for each in colours] == [TOO_NEAR, TOO_NEAR, RIGHT, TOO_DEEP, TOO_DEEP]
    truth = np.array([[10.0, 10, 10, np.inf, 90, 0]])
    shown = error_map(np.array([[10.0, 20, 5, 10, 10, 10]]), truth)[0]
    expected = [RIGHT, TOO_DEEP, TOO_NEAR, NOT_COUNTED, NOT_COUNTED, NOT_COUNTED]
    assert [tuple(map(int, each)) for each in shown] == expected


def test_predictions_that_do_not_belong_to_the_rest_are_refused(
    streets: Path, street_shards: Path, tmp_path: Path
) -> None:
    clips = predictions_of(streets, {"test_0001": EVEN["test_0001"]})
    with pytest.raises(PredictionError, match=r"truth\.h5 is missing"):
        best_and_worst(clips, street_shards, tmp_path)
    with pytest.raises(ShardError, match="no shard set"):
        best_and_worst(clips, tmp_path, streets)
    with pytest.raises(PredictionError, match="no frame with valid truth"):
        best_and_worst([], street_shards, streets)


# The command.
@pytest.fixture
def given(streets: Path, street_shards: Path, tmp_path: Path) -> Arguments:
    """A run, predictions on streets, and a page that stands there from before."""
    run, predictions = tmp_path / "runs" / "odd <b> #1", tmp_path / "predictions"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("steps: 40 # <script>\ndata: {batch_size: 4, shards: [{folder: a}]}\n")
    lines = [*rows(20, total=1.0), *rows(2, "validation", total=1.0)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (run / "last.pt").write_bytes(b"weights")
    index = PredictionIndex(checkpoint="made", size=(208, 64), depth_type="float32", clips=tuple(EVEN))
    for clip in predictions_of(streets, EVEN):
        write_clip(predictions, clip, index)
        (predictions / "text").mkdir(exist_ok=True)
        for suffix in ("objects.csv", "objects.json"):
            (predictions / "text" / f"{clip.name}.{suffix}").write_text("")
    write_index(predictions, index)
    out = tmp_path / "pages" / "report.html"
    out.parent.mkdir()
    out.write_text("before")
    return Arguments(run, out, predictions, street_shards, streets, pictures=2)


def test_a_run_becomes_one_file_whose_links_lead_somewhere(
    given: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(given) == 0
    assert capsys.readouterr().out == f"{given.out}\n"
    page = given.out.read_text(encoding="utf-8")
    parsed = require_self_contained(page)
    targets = [each["href"] for each in parsed.all("a") if not each["href"].startswith("#")]
    assert all((given.out.parent / unquote(each)).exists() for each in targets)
    assert any(each.endswith("last.pt") for each in targets)
    assert any(each.endswith("shardset.json") for each in targets)
    assert sum(each.endswith((".objects.csv", ".objects.json")) for each in targets) == 6
    anchors = {each["href"] for each in parsed.all("a")} - set(targets)
    assert anchors == {f"#{each['id']}" for each in parsed.all("section")}
    assert len(anchors) == 5
    assert "Run odd <b> #1" in parsed.text
    assert "steps: 40 # <script>" in parsed.text
    assert "instance-motion train --recipe" in parsed.text
    assert points(page, "polyline", "train") == [20]
    data = [each["src"].partition(",")[2] for each in parsed.all("img")]
    assert all(base64.b64decode(each, validate=True) for each in data)
    assert len(data) == 1 + 4 * 4
    assert not list(given.out.parent.glob(".*"))


def test_files_of_figures_are_columns_and_replace_scoring(given: Arguments, tmp_path: Path) -> None:
    for name, value in (("a", 0.25), ("b", 0.5)):
        (tmp_path / f"{name}.json").write_text(figures_json([figure(value=value)]))
    files = (str(tmp_path / "a.json"), f"constant depth={tmp_path / 'b.json'}")
    assert command.run(replace(given, figures=files, truth=None)) == 0
    assert cells(given.out.read_text()) == [
        ["figure", "a", "constant depth", "unit", "of"],
        ["AbsRel", "0.2500", "0.5000", "fraction", "9"],
    ]


def test_a_run_alone_is_enough(given: Arguments) -> None:
    assert command.run(Arguments(given.run, given.out)) == 0
    parsed = require_self_contained(given.out.read_text())
    assert [each["id"] for each in parsed.all("section")] == ["training", "configuration", "files"]


def test_a_demo_s_videos_are_linked(given: Arguments, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    (demo / "a").mkdir(parents=True)
    (demo / "a" / "b 1.mp4").write_bytes(b"video")
    assert command.run(Arguments(given.run, given.out, demo=demo)) == 0
    page = given.out.read_text()
    assert '<a href="../demo/a/b%201.mp4">video</a>' in page
    assert "demo: a/b 1" in page


def test_of_many_clips_some_are_linked_and_the_rest_is_counted(
    given: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "MAX_CLIPS", 1)
    assert command.run(Arguments(given.run, given.out, predictions=given.predictions)) == 0
    page = given.out.read_text()
    assert page.count("objects.csv") == 1
    assert "and 2 clips more" in page


@pytest.mark.parametrize(
    "config", ["{}", "data: {shards: [3, {folder: [a]}], size: {a: 1}}\nsteps: [[1]]\nnetworks: 3\n"]
)
def test_settings_of_another_version_are_shown_as_they_are(given: Arguments, config: str) -> None:
    (given.run / "config.yaml").write_text(config)
    assert command.run(Arguments(given.run, given.out)) == 0
    assert config in Parsed(given.out.read_text()).text


def broken(given: Arguments, case: str) -> Arguments:
    if case == "no run":
        return replace(given, run=given.run / "nothing")
    if case == "settings that are no YAML":
        (given.run / "config.yaml").write_text("a: [")
    if case == "metrics that are no text":
        (given.run / "metrics.jsonl").write_bytes(b"\xff\xfe")
    if case == "metrics of another kind":
        (given.run / "metrics.jsonl").write_text("[1]\n")
    if case == "metrics without end":
        (given.run / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    if case == "a number without end":
        (given.run / "metrics.jsonl").write_text("9" * 5000 + "\n")
    if case == "no predictions":
        return replace(given, predictions=given.run)
    if case == "no shard set":
        return replace(given, shards=given.run)
    if case == "no truth":
        return replace(given, truth=given.run)
    if case == "no figures":
        return replace(given, figures=(str(given.run / "nothing.json"),))
    if case == "two columns of one name":
        (given.run / "f.json").write_text(figures_json([figure()]))
        return replace(given, figures=(str(given.run / "f.json"),) * 2)
    if case == "no demo":
        return replace(given, demo=given.run)
    return given


@pytest.mark.parametrize(
    "case",
    [
        "no run",
        "settings that are no YAML",
        "metrics that are no text",
        "metrics of another kind",
        "metrics without end",
        "a number without end",
        "no predictions",
        "no shard set",
        "no truth",
        "no figures",
        "two columns of one name",
        "no demo",
    ],
)
def test_what_cannot_be_read_is_one_line_and_leaves_the_page_alone(case: str, given: Arguments) -> None:
    with pytest.raises(InstanceMotionError) as caught:
        command.run(broken(given, case))
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert given.out.read_text() == "before"


def test_the_page_appears_whole_or_not_at_all(given: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(source: object, target: object) -> None:
        assert Path(str(source)).read_text().endswith("</html>\n")  # complete before it is moved
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            command.run(Arguments(given.run, given.out))
    assert given.out.read_text() == "before"
    assert [each.name for each in given.out.parent.iterdir()] == ["report.html"]


def test_truth_alone_and_no_picture_are_refused() -> None:
    with pytest.raises(ConfigError, match="--truth needs --predictions and --shards"):
        Arguments(Path("run"), Path("out"), truth=Path("streets"))
    with pytest.raises(ConfigError, match="pictures must be at least 1"):
        Arguments(Path("run"), Path("out"), pictures=0)


def test_the_command_line_can_be_parsed() -> None:
    import tyro

    parsed = tyro.cli(Arguments, args=["r", "--out", "o.html", "--figures", "a.json", "b=c.json"])
    assert (parsed.run, parsed.out, parsed.figures) == (Path("r"), Path("o.html"), ("a.json", "b=c.json"))


def test_tables_are_plain_data() -> None:
    (table,) = figure_tables({"a": [figure()]})
    assert table == Table(protocol="p", scale="", columns=("a",), rows=(("AbsRel", "fraction", (figure(),)),))
