"""Tables with what was measured beside what was published."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.depth_protocols import CITYSCAPES, KITTI_EIGEN, KITTI_IMPROVED
from evaluation.figure import Figure, figures_json
from evaluation.published import TABLES
from pipeline.errors import ConfigError, InstanceMotionError
from workflows.commands import tables as command
from workflows.tables import (
    Measured,
    MeasuredError,
    measured_lines,
    measured_of,
    read_measured,
    row_cells,
    tables_json,
    tables_text,
)

EIGEN = f"{KITTI_EIGEN.description}; mean over images"


def depth_figure(value: float, name: str = "AbsRel, all", protocol: str = EIGEN, count: int = 697) -> Figure:
    units = {"AbsRel": "fraction", "SqRel": "m"}
    return Figure(
        name=name, value=value, unit=units[name.split(",")[0]], protocol=protocol, count=count, scale="median"
    )


def t_err(value: float, protocol: str = "odometry, sequence 09; segments", count: int = 958) -> Figure:
    return Figure(name="t_err", value=value, unit="%", protocol=protocol, count=count)


def written(folder: Path, data: Any, name: str = "measured.json") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def line_with(text: str, start: str) -> str:
    found = [line for line in text.splitlines() if line.startswith(start)]
    assert len(found) == 1, f"{start!r} begins {len(found)} lines of\n{text}"
    return found[0]


def test_without_measurements_every_row_is_published_and_not_run() -> None:
    text = tables_text()
    rows = sum(len(table.rows) for table in TABLES.values())
    assert text.count("  published  ") == rows
    assert text.count("not run") == rows
    assert line_with(text, "geo (ours)").split() == [
        "geo", "(ours)", "K", "published", "0.137", "0.124", "0.309"
    ]  # fmt: skip
    assert line_with(text, "none (ours)").split()[-3:] == ["?", "0.142", "?"]
    assert line_with(text, "# recipe of DispResNet C+K").endswith(
        "train-kitti-after-cityscapes.yaml --networks.depth.architecture dispresnet"
    )


def test_tables_are_chosen_by_number_each_once() -> None:
    text = tables_text([6, 2, 6])
    assert [line[:7] for line in text.splitlines() if line.startswith("Table")] == ["Table 6", "Table 2"]
    with pytest.raises(ConfigError, match="no Table 7; there are 2, 3, 4, 5, 6"):
        tables_text([7])


def test_measured_figures_stand_below_the_published_ones_with_their_protocol() -> None:
    figures = (depth_figure(0.11149), depth_figure(0.9, "SqRel, all"), depth_figure(0.3, "AbsRel, object"))
    text = tables_text([4], [Measured(table=4, row="ResNet18 K", figures=figures)])
    lines = text.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("ResNet18 K "))
    assert lines[row + 1].split() == ["here", "0.111", "0.900", *["not", "run"] * 5]
    assert f"# ResNet18 K (ours), here: AbsRel, SqRel: {EIGEN}; scale: median (of 697)" in lines
    assert "recipe of ResNet18 K" not in text
    assert "*" not in lines[row + 1]


@pytest.mark.parametrize(
    "protocol", [KITTI_IMPROVED.description, CITYSCAPES.description, "streetworld, 30 clips"]
)
def test_another_protocol_is_shown_and_marked(protocol: str) -> None:
    figure = depth_figure(0.2, protocol=protocol)
    text = tables_text([4], [Measured(table=4, row="ResNet18 K", figures=(figure,))])
    assert " 0.200* " in text
    assert f"AbsRel: * other protocol, not KITTI Eigen: {protocol}" in text


def test_cityscapes_rows_are_judged_by_cityscapes() -> None:
    figure = depth_figure(0.2, protocol=CITYSCAPES.description, count=1525)
    cell = row_cells(Measured(table=4, row="ResNet18 C", figures=(figure,)))[0]
    assert (cell.other, cell.part) == (False, False)


def test_a_part_of_the_benchmark_is_marked() -> None:
    figures = (depth_figure(0.2, count=25), depth_figure(0.3, "AbsRel, object", count=400))
    text = tables_text([2], [Measured(table=2, row="full", figures=figures)])
    here = next(line for line in text.splitlines() if line.split()[:1] == ["here"] and "0.200" in line)
    assert here.split() == ["here", "0.200~", "not", "run", "0.300"]  # objects are not in every image
    assert "AbsRel all: ~ not the whole benchmark, 697: " in text
    assert "(of 25)" in text
    assert "(of 400)" in text


def test_sequences_are_told_by_name_or_protocol_and_pooled_ones_belong_to_none() -> None:
    figures = (
        t_err(8.0),
        t_err(9.0, "odometry, sequence 10/image_2; segments from every 10th frame", 464),
        t_err(7.0, "odometry, all 2 sequences; segments from every 10th frame"),
        t_err(6.0, "odometry, sequence 07; segments"),
    )
    cells = row_cells(Measured(table=6, row="w/ inst.", figures=figures))
    assert {index: (cell.value, cell.other, cell.part) for index, cell in cells.items()} == {
        0: (8.0, False, False),
        2: (9.0, False, False),
    }
    named = replace(t_err(5.0, "somewhere"), name="t_err, 09")
    assert row_cells(Measured(table=6, row="GeoNet", figures=(named,)))[0].other


def test_a_sequence_that_is_not_kittis_by_its_length_is_marked() -> None:
    assert row_cells(Measured(table=6, row="GeoNet", figures=(t_err(5.0, count=957),)))[0].part


def test_shares_become_percent_and_other_units_are_refused() -> None:
    share = Figure(
        name="D1, bg", value=0.268, unit="fraction", protocol="KITTI 2015 scene flow", count=9, scale="x"
    )
    measured = Measured(table=3, row="Ours + GeoNet", figures=(share,))
    assert row_cells(measured)[0].value == pytest.approx(26.8)
    with pytest.raises(MeasuredError, match=r"'px', column D1 bg of Table 3 in '%'"):
        row_cells(replace(measured, figures=(replace(share, unit="px"),)))


def test_files_of_one_row_share_a_line_until_they_overlap() -> None:
    first, second = (
        Measured(table=6, row="w/ inst.", figures=(t_err(8.0),)),
        Measured(
            table=6,
            row="w/ inst.",
            figures=(replace(t_err(9.0, "odometry, sequence 10; segments"), count=464),),
        ),
    )
    lines = measured_lines(TABLES[6], [first, second, first])["w/ inst."]
    assert [sorted(line) for line in lines] == [[0, 2], [0]]
    assert measured_lines(TABLES[5], [first, second]) == {}


def test_two_figures_for_one_column_in_a_file_are_refused() -> None:
    with pytest.raises(MeasuredError, match="2 figures for column 09 t_err of Table 6"):
        row_cells(Measured(table=6, row="w/ inst.", figures=(t_err(1.0), t_err(2.0))))


def test_what_evaluate_writes_is_read_back(tmp_path: Path) -> None:
    figures = (depth_figure(0.111), depth_figure(math.nan, "AbsRel, object", count=0))
    data = {"table": 2, "row": "full", "figures": json.loads(figures_json(figures))}
    found = read_measured(written(tmp_path, data))
    assert (found.table, found.row, found.figures[0]) == (2, "full", figures[0])
    assert math.isnan(found.figures[1].value)
    here = next(line for line in tables_text([2], [found]).splitlines() if "0.111" in line)
    assert here.split() == ["here", "0.111", "not", "run", "-"]


def test_a_list_that_evaluate_wrote_is_placed_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "depth.json"
    path.write_text(figures_json([depth_figure(0.111)]))
    measured = measured_of(f"4/ResNet18 K={path}")
    assert measured == Measured(table=4, row="ResNet18 K", figures=(depth_figure(0.111),))
    itself = written(tmp_path, {"table": 2, "row": "geo", "figures": json.loads(path.read_text())})
    assert measured_of(str(itself)).row == "geo"
    with pytest.raises(ConfigError, match="ResNet9 K"):
        measured_of(f"4/ResNet9 K={path}")
    with pytest.raises(MeasuredError, match="table"):
        measured_of(str(path))  # a list does not say where it belongs


def test_json_has_published_text_and_measured_figures() -> None:
    measured = Measured(
        table=4, row="ResNet18 C", figures=(depth_figure(0.2), depth_figure(math.nan, "SqRel, all"))
    )
    (table,) = json.loads(tables_json([4], [measured]))
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["ResNet18 K"]["figures"][2] == "4.690"
    assert rows["ResNet18 K"]["measured"] == []
    (line,) = rows["ResNet18 C"]["measured"]
    assert set(line) == {"AbsRel", "SqRel"}
    assert (line["AbsRel"]["value"], line["AbsRel"]["count"], line["SqRel"]["value"]) == (0.2, 697, None)
    assert line["AbsRel"]["other_protocol"]


GOOD = {"table": 4, "row": "ResNet18 K", "figures": [asdict(depth_figure(0.1))]}
BAD = {
    "not JSON": ("{", MeasuredError, "not JSON"),
    "a list": ([], MeasuredError, 'expected {"table": 4'),
    "no row": ({"table": 4, "figures": []}, MeasuredError, 'expected {"table": 4'),
    "unknown table": ({**GOOD, "table": 9}, ConfigError, "no Table 9; there are 2, 3, 4, 5, 6"),
    "a table as text": ({**GOOD, "table": "4"}, MeasuredError, "measured.table: expected int, found '4'"),
    "unknown row": ({**GOOD, "row": "ours"}, ConfigError, "Table 4 has no row 'ours'; there are EPC"),
    "unknown key": ({**GOOD, "seed": 1}, MeasuredError, "unknown key 'seed'"),
    "figures as text": ({**GOOD, "figures": "0.1"}, MeasuredError, "measured.figures: expected a list"),
    "a figure of numbers": ({**GOOD, "figures": [1]}, MeasuredError, "expected a mapping"),
    "a figure without count": (
        {**GOOD, "figures": [{k: v for k, v in GOOD["figures"][0].items() if k != "count"}]},  # type: ignore[index]
        MeasuredError,
        "missing 1 required keyword-only argument: 'count'",
    ),
    "no figure": ({**GOOD, "figures": []}, MeasuredError, "has no figure of Table 4; expected 'AbsRel, all'"),
    "no sequence": (
        {"table": 6, "row": "w/ inst.", "figures": [asdict(t_err(1.0, "odometry"))]},
        MeasuredError,
        "expected 't_err', 'r_err', each with its sequence (09 or 10) in its name or protocol",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    data, kind, message = BAD[case]
    path = written(tmp_path, data)
    with pytest.raises(InstanceMotionError) as found:
        read_measured(path)
    assert type(found.value) is kind
    assert str(found.value).startswith(f"{path}: ")
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MeasuredError, match=r"none.json: No such file or directory; give a JSON file"):
        read_measured(tmp_path / "none.json")


def test_the_command_prints_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD)
    assert command.run(command.Arguments(table=(4,), measured=(str(path),))) == 0
    assert capsys.readouterr().out == tables_text([4], [read_measured(path)]) + "\n"
    assert command.run(command.Arguments(table=(4,), measured=(str(path),), json=True)) == 0
    assert json.loads(capsys.readouterr().out)[0]["number"] == 4
