"""The report as a command: what is linked, what is scored, what is refused."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from evaluation.figure import figures_json
from evaluation.predictions import (
    PredictionIndex,
    write_clip,
    write_index,
)
from pipeline.errors import ConfigError, InstanceMotionError
from tests.workflows.report_pages import (
    EVEN,
    Parsed,
    cells,
    figure,
    points,
    predictions_of,
    require_self_contained,
    rows,
)
from workflows.commands import report as command
from workflows.commands.report import Arguments
from workflows.report import (
    Table,
    figure_tables,
)


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
