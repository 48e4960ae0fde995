"""The published tables: digits as printed, names that exist, columns that our figures fill."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

from evaluation import depth_protocols, odometry, sequence_errors
from evaluation.depth import DepthTally
from evaluation.depth_protocols import DepthScore
from evaluation.odometry import PairSums, SnippetSums
from evaluation.published import CITYSCAPES, DASH, EIGEN, ODOMETRY, OURS, TABLES, Table, published_table
from evaluation.sequence_errors import SequenceSums
from pipeline.errors import ConfigError
from tests.conftest import ROOT

RECIPES = ROOT / "workflows" / "recipes"

PRINTED = [
    (2, "none", (None, "0.142", None)),
    (2, "geo", ("0.137", "0.124", "0.309")),
    (2, "inst+inverse", ("0.151", "0.138", "0.377")),
    (2, "full", ("0.124", "0.119", "0.178")),
    (3, "CC", ("35.0", None, "36.2", "-", "-", "-")),
    (3, "EPC++ (mono)", (None, "34.4", None, None, "84.6", None)),
    (3, "Ours + GeoNet", ("26.8", "30.4", "27.4", "28.9", "32.3", "29.4")),
    (4, "EPC++ K", ("0.141", "1.029", "5.350", "0.216", "0.816", "0.941", "0.976")),
    (4, "DispResNet K", ("0.124", "0.886", "5.061", "0.206", "0.844", "0.948", "0.979")),
    (4, "ResNet18 K", ("0.112", "0.855", "4.690", "0.192", "0.874", "0.958", "0.980")),
    (4, "DispResNet C+K", ("0.119", "0.863", "4.984", "0.202", "0.856", "0.950", "0.980")),
    (4, "ResNet18 C+K", ("0.109", "0.812", "4.623", "0.191", "0.875", "0.958", "0.979")),
    (4, "ResNet18 C", ("0.128", "1.584", "5.917", "0.197", "0.852", "0.951", "0.980")),
    (4, "Struct2Depth C", ("0.145", "1.737", "7.280", "0.205", "0.813", "0.942", "0.978")),
    (5, "SfM-Learner", ("0.021", "0.017", "0.020", "0.015")),
    (5, "w/o inst.", ("0.012", "0.008", "0.011", "0.010")),
    (5, "w/ inst.", ("0.010", "0.013", "0.011", "0.008")),
    (6, "GeoNet", ("39.4", "14.3", "29.0", "8.6")),
    (6, "SC-SfM", ("11.2", "3.4", "10.1", "5.0")),
    (6, "w/ inst.", ("8.6", "2.9", "9.2", "4.5")),
]


@pytest.mark.parametrize(("number", "name", "figures"), PRINTED)
def test_figures_are_kept_as_printed(number: int, name: str, figures: tuple[str | None, ...]) -> None:
    assert published_table(number).row(name).figures == figures


def test_every_row_of_the_paper_is_there() -> None:
    assert {number: len(table.rows) for number, table in TABLES.items()} == {2: 6, 3: 4, 4: 16, 5: 7, 6: 4}


def test_values_are_numbers_where_there_is_one() -> None:
    assert TABLES[2].row("none").values == (None, 0.142, None)
    assert TABLES[3].row("CC").values == (35.0, None, 36.2, None, None, None)
    assert TABLES[2].decimals(1) == TABLES[4].decimals(2) == 3
    assert TABLES[3].decimals(0) == TABLES[6].decimals(1) == 1


@pytest.mark.parametrize("table", TABLES.values(), ids=map(str, TABLES))
def test_every_printed_figure_is_a_number_with_its_columns_digits(table: Table) -> None:
    for row in table.rows:
        for index, text in enumerate(row.figures):
            if text not in (None, DASH):
                whole, _, part = str(text).partition(".")
                assert whole.isdecimal(), f"{row.name}: {text}"
                assert len(part) == table.decimals(index)


@pytest.mark.parametrize("table", TABLES.values(), ids=map(str, TABLES))
def test_names_are_unique_and_ours_have_recipes_that_exist(table: Table) -> None:
    names = [row.name for row in table.rows]
    assert len(set(names)) == len(names)
    for row in table.rows:
        for recipe in row.recipes:
            assert (RECIPES / recipe).is_file(), recipe
        if row.method == OURS:
            assert row.recipes, f"{row.name} is ours and has no recipe"


@pytest.mark.parametrize("table", TABLES.values(), ids=map(str, TABLES))
def test_a_recipe_states_the_figures_of_its_row(table: Table) -> None:
    for row in table.rows:
        first = row.values[0] if row.values[0] is not None else row.values[1]
        for recipe in row.recipes:
            if table.number == 3:  # its recipe states Table 4
                continue
            text = (RECIPES / recipe).read_text()
            assert f"{first:g}".removeprefix("0").rstrip("0") in text, f"{recipe} against {row.name}"


def test_a_row_that_is_there_twice_or_has_too_few_figures_cannot_be_made() -> None:
    table = TABLES[6]
    with pytest.raises(ValueError, match="two rows of one name"):
        replace(table, rows=(*table.rows, table.rows[0]))
    with pytest.raises(ValueError, match="Table 6, GeoNet: 3 figures"):
        replace(table, rows=(replace(table.rows[0], figures=("1", "2", "3")),))


def test_what_is_not_there_is_answered_by_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"^no Table 1; there are 2, 3, 4, 5, 6$"):
        published_table(1)
    with pytest.raises(
        ConfigError, match=r"^Table 6 has no row 'ours'; there are GeoNet, SC-SfM, w/o inst., w/"
    ):
        published_table(6).row("ours")


def test_the_columns_name_figures_that_are_measured() -> None:
    regions = {name: DepthTally() for name in ("all", "background", "object")}
    measured = {
        (figure.name, figure.unit)
        for figure in (
            *depth_protocols.figures(
                DepthScore(regions=regions), depth_protocols.KITTI_EIGEN, masks_from="here"
            ),
            *sequence_errors.figures(SequenceSums(), "odometry, sequence 09"),
            *odometry.figures(SnippetSums(), SnippetSums(), PairSums(), "odometry, sequence 09"),
        )
    }
    for number in (2, 4, 5, 6):
        assert {(column.figure, column.unit) for column in TABLES[number].columns} <= measured


def test_the_columns_of_disparities_name_figures_that_are_measured() -> None:
    scene_flow = pytest.importorskip("evaluation.scene_flow")
    found = scene_flow.figures(scene_flow.SceneFlowScore())
    assert {(column.figure, column.unit) for column in TABLES[3].columns} <= {
        (figure.name, figure.unit) for figure in found
    }
    assert all(TABLES[3].rows[0].benchmark.says in figure.protocol for figure in found)


def test_a_benchmark_is_told_from_its_variants_by_the_protocols_text() -> None:
    assert EIGEN.says in depth_protocols.KITTI_EIGEN.description
    assert CITYSCAPES.says in depth_protocols.CITYSCAPES.description
    for other in (depth_protocols.KITTI_EIGEN_Z, depth_protocols.KITTI_IMPROVED, depth_protocols.CITYSCAPES):
        assert EIGEN.says not in other.description
    assert ODOMETRY.says not in depth_protocols.KITTI_EIGEN.description


def test_the_module_holds_no_figure_outside_its_rows() -> None:
    # A row that is written down but left out of its table would be lost without a word.
    tree = ast.parse((ROOT / "evaluation" / "published.py").read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("_row", "_others_depth", "_our_depth", "_odometry")
    ]
    inside_helpers = 3  # each of the three others calls _row once
    assert len(calls) - inside_helpers == sum(len(table.rows) for table in TABLES.values())
