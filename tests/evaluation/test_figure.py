"""How results are printed: nothing without its protocol, nothing that other programs cannot read."""

from __future__ import annotations

import json

from evaluation.figure import Figure, figures_json, figures_table

FIGURES = [
    Figure(name="AbsRel", value=0.125, unit="fraction", protocol="KITTI Eigen", count=697, scale="median"),
    Figure(name="RMSE", value=float("nan"), unit="m", protocol="KITTI Eigen", count=0, scale="median"),
    Figure(name="t_err", value=12.5, unit="%", protocol="KITTI odometry", count=3),
]


def test_a_table_names_each_protocol_once_and_aligns_its_values() -> None:
    assert figures_table(FIGURES).splitlines() == [
        "# KITTI Eigen; scale: median",
        "AbsRel      0.1250 fraction (of 697)",
        "RMSE             - m (of 0)",
        "# KITTI odometry",
        "t_err      12.5000 % (of 3)",
    ]
    assert figures_table([]) == ""


def test_json_holds_every_field_and_null_for_nothing() -> None:
    rows = json.loads(figures_json(FIGURES), parse_constant=lambda name: 1 / 0)
    assert [row["value"] for row in rows] == [0.125, None, 12.5]
    assert rows[0] == {
        "name": "AbsRel",
        "value": 0.125,
        "unit": "fraction",
        "protocol": "KITTI Eigen",
        "count": 697,
        "scale": "median",
    }
