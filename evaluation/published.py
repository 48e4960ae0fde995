"""What the paper published: its Tables 2 to 6 as data, digit by digit, other methods' rows too.

A figure is kept as the text that is printed, so that no digit is added or lost. In the rows below, "?"
stands for a figure that cannot be read in our copy of the paper (it becomes None), "-" for a dash that the
paper prints itself. Every column names the figure of `evaluation.figure` that measures the same, and every
row the recipes of `workflows/recipes` that reproduce it, if there are any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

DASH = "-"
"""Printed by the paper where a method has no figure."""
OURS = "Ours"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What rows were tested on.

    name:   for people
    says:   what `Figure.protocol` must hold for the figure to be one of this benchmark
    images: how many it has, where figures are means over images; None where they are not
    """

    name: str
    says: str
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    name:     as printed, with the group it stands in
    unit:     of the figures as printed
    better:   whether less or more is better
    figure:   `Figure.name` of the same quantity
    sequence: which one it is of, where figures of several have the same name
    count:    of what a figure of the whole sequence is a mean over, where that is known
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    figure: str
    sequence: str = ""
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    name:     unlike that of any other row of its table
    method:   as printed, without the reference
    figures:  one a column, as printed; None where it cannot be read in the source
    training: data, as in the paper: K KITTI, C Cityscapes, C+K one after the other, (S) with semantics
    backbone: of the depth network, where the table has it
    recipes:  files of workflows/recipes, each of which reproduces it
    options:  of `train` that are needed besides, for what the recipe begins from as well
    """

    name: str
    method: str
    figures: tuple[str | None, ...]
    training: str
    benchmark: Benchmark
    backbone: str = ""
    recipes: tuple[str, ...] = ()
    options: str = ""

    @property
    def values(self) -> tuple[float | None, ...]:
        """The figures as numbers; None where there is none, or none that can be read."""
        return tuple(None if text in (None, DASH) else float(str(text)) for text in self.figures)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table; `protocol` is what is known of how its figures were made."""

    number: int
    title: str
    protocol: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f"Table {self.number} has two rows of one name: {sorted(names)}")
        for row in self.rows:
            if len(row.figures) != len(self.columns):
                raise ValueError(f"Table {self.number}, {row.name}: {len(row.figures)} figures")

    def row(self, name: str) -> Row:
        """The row of a name.

        Raises:
            ConfigError: there is none; lists those that there are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(
            f"Table {self.number} has no row {name!r}; there are {', '.join(row.name for row in self.rows)}"
        )

    def decimals(self, column: int) -> int:
        """Digits after the point that a column is printed with."""
        texts = [row.figures[column] for row in self.rows]
        return max((len(text.partition(".")[2]) for text in texts if text is not None), default=0)

    def whole(self, row: Row, column: Column) -> int | None:
        """`Figure.count` of a figure of the whole benchmark; None where it depends on more than that."""
        if column.figure.endswith(", all"):  # objects, or background, are not in every image
            return row.benchmark.images
        return column.count


def published_table(number: int) -> Table:
    """A table by its number.

    Raises:
        ConfigError: there is none; lists those that there are.
    """
    if number not in TABLES:
        raise ConfigError(f"no Table {number}; there are {', '.join(map(str, TABLES))}")
    return TABLES[number]


EIGEN = Benchmark(name="KITTI Eigen", says="KITTI Eigen:", images=697)
CITYSCAPES = Benchmark(name="Cityscapes", says="Cityscapes:", images=1525)
SCENE_FLOW = Benchmark(name="KITTI 2015 scene flow", says="KITTI 2015")
# Trajectories are the user's own files: their protocol knows the names of sequences, and not of what.
ODOMETRY = Benchmark(name="KITTI odometry", says="odometry, sequence ")
_SNIPPETS = {"09": 1587, "10": 1197}
_SEGMENTS = {"09": 958, "10": 464}


def _row(
    name: str,
    figures: str,
    training: str,
    benchmark: Benchmark,
    *recipes: str,
    method: str = OURS,
    backbone: str = "",
    options: str = "",
) -> Row:
    texts = tuple(None if text == "?" else text for text in figures.split())
    return Row(
        name=name,
        method=method,
        figures=texts,
        training=training,
        benchmark=benchmark,
        backbone=backbone,
        recipes=tuple(f"{recipe}.yaml" for recipe in recipes),
        options=options,
    )


def _others_depth(method: str, backbone: str, training: str, figures: str, *recipes: str) -> Row:
    """A row of Table 4 that is not the authors'."""
    data = training.removesuffix(" (S)")
    return _row(
        f"{method} {data}",
        figures,
        training,
        CITYSCAPES if data == "C" else EIGEN,
        *recipes,
        method=method,
        backbone=backbone,
    )


def _our_depth(backbone: str, data: str, figures: str, recipe: str, options: str = "") -> Row:
    """A row of Table 4 that is the authors': all of them know instances."""
    benchmark = CITYSCAPES if data == "C" else EIGEN
    return _row(
        f"{backbone} {data}", figures, f"{data} (S)", benchmark, recipe, backbone=backbone, options=options
    )


def _odometry(method: str, figures: str, *recipes: str, name: str = "") -> Row:
    """A row of Tables 5 and 6."""
    return _row(name or method, figures, "K 00-08", ODOMETRY, *recipes, method=method)


_TABLE_2 = Table(
    number=2,
    title="ablation on KITTI Eigen, all pixels, background (bg) and objects (obj)",
    protocol=(
        "KITTI Eigen, 697 images, raw LiDAR truth, Garg crop, up to 80 m; one median scale an image, from "
        "all its pixels; the last row is the DispResNet one of Table 4; masks not published"
    ),
    columns=tuple(
        Column(name=f"AbsRel {short}", unit="fraction", better="lower", figure=f"AbsRel, {region}")
        for short, region in (("all", "all"), ("bg", "background"), ("obj", "object"))
    ),
    rows=(
        _row("none", "? 0.142 ?", "K", EIGEN, "train-kitti-ablation-none"),
        _row("geo", "0.137 0.124 0.309", "K", EIGEN, "train-kitti-ablation-geo"),
        _row("inst+inverse", "0.151 0.138 0.377", "K (S)", EIGEN, "train-kitti-ablation-inst-inverse"),
        _row(
            "inst+geo+inverse", "0.146 0.131 0.362", "K (S)", EIGEN, "train-kitti-ablation-inst-geo-inverse"
        ),
        _row("inst+forward", "0.143 0.133 0.285", "K (S)", EIGEN, "train-kitti-ablation-inst-forward"),
        _row("full", "0.124 0.119 0.178", "K (S)", EIGEN, "train-kitti-dispresnet", "train-kitti-paper"),
    ),
)

_TABLE_3 = Table(
    number=3,
    title="disparity on KITTI 2015 scene flow, training set",
    protocol=(
        "KITTI 2015 scene flow, 200 pairs; outliers are off by more than 3 px and 5 % of the truth; pixels of "
        "all images pooled; D2 of the last row by GeoNet's flow; neither scale rule nor backbone is published"
    ),
    columns=tuple(
        Column(name=f"{which} {region}", unit="%", better="lower", figure=f"{which}, {region}")
        for which in ("D1", "D2")
        for region in ("bg", "fg", "all")
    ),
    rows=(
        _row("CC", "35.0 ? 36.2 - - -", "K", SCENE_FLOW, method="CC"),
        _row(
            "SC-SfM",
            "36.0 46.5 37.5 - - -",
            "K",
            SCENE_FLOW,
            "train-kitti-sc-sfmlearner",
            method="SC-SfM",
        ),
        _row("EPC++ (mono)", "? 34.4 ? ? 84.6 ?", "K", SCENE_FLOW, method="EPC++ (mono)"),
        _row("Ours + GeoNet", "26.8 30.4 27.4 28.9 32.3 29.4", "K (S)", SCENE_FLOW, method="Ours + GeoNet"),
    ),
)

_TABLE_4 = Table(
    number=4,
    title="depth on KITTI's Eigen test split (K) and Cityscapes' test set (C)",
    protocol=(
        "K: KITTI Eigen, 697 images, raw LiDAR truth, Garg crop, up to 80 m; C: Cityscapes, 1525 images, rows "
        "256:768, columns 192:1856, up to 80 m; median scale of each image, mean over images"
    ),
    columns=(
        Column(name="AbsRel", unit="fraction", better="lower", figure="AbsRel, all"),
        Column(name="SqRel", unit="m", better="lower", figure="SqRel, all"),
        Column(name="RMSE", unit="m", better="lower", figure="RMSE, all"),
        Column(name="RMSElog", unit="log m", better="lower", figure="RMSElog, all"),
        Column(name="d<1.25", unit="fraction", better="higher", figure="d<1.25, all"),
        Column(name="d<1.25^2", unit="fraction", better="higher", figure="d<1.25^2, all"),
        Column(name="d<1.25^3", unit="fraction", better="higher", figure="d<1.25^3, all"),
    ),
    rows=(
        _others_depth("EPC++", "DispNet", "K", "0.141 1.029 5.350 0.216 0.816 0.941 0.976"),
        _others_depth("CC", "DispResNet", "K", "0.140 1.070 5.326 0.217 0.826 0.941 0.975"),
        _others_depth(
            "SC-SfM",
            "DispResNet",
            "K",
            "0.137 1.089 5.439 0.217 0.830 0.942 0.975",
            "train-kitti-sc-sfmlearner",
        ),
        _our_depth("DispResNet", "K", "0.124 0.886 5.061 0.206 0.844 0.948 0.979", "train-kitti-dispresnet"),
        _others_depth("GLNet", "ResNet18", "K", "0.135 1.070 5.230 0.210 0.841 0.948 0.980"),
        _others_depth(
            "Monodepth2",
            "ResNet18",
            "K",
            "0.132 1.044 5.142 0.210 0.845 0.948 0.977",
            "train-kitti-monodepth2",
        ),
        _others_depth("Struct2Depth", "ResNet18", "K (S)", "0.141 1.026 5.290 0.215 0.816 0.945 0.979"),
        _others_depth("Ariel et al.", "ResNet18", "K (S)", "0.128 0.959 5.230 0.212 0.845 0.947 0.976"),
        _our_depth("ResNet18", "K", "0.112 0.855 4.690 0.192 0.874 0.958 0.980", "train-kitti-resnet18"),
        _others_depth("CC", "DispResNet", "C+K", "0.139 1.032 5.199 0.213 0.827 0.943 0.977"),
        _others_depth("SC-SfM", "DispResNet", "C+K", "0.128 1.047 5.234 0.208 0.846 0.947 0.976"),
        _our_depth(
            "DispResNet",
            "C+K",
            "0.119 0.863 4.984 0.202 0.856 0.950 0.980",
            "train-kitti-after-cityscapes",
            "--networks.depth.architecture dispresnet",
        ),
        _others_depth("Ariel et al.", "ResNet18", "C+K (S)", "0.124 0.930 5.120 0.206 0.851 0.950 0.978"),
        _our_depth(
            "ResNet18", "C+K", "0.109 0.812 4.623 0.191 0.875 0.958 0.979", "train-kitti-after-cityscapes"
        ),
        _others_depth("Struct2Depth", "ResNet18", "C (S)", "0.145 1.737 7.280 0.205 0.813 0.942 0.978"),
        _our_depth("ResNet18", "C", "0.128 1.584 5.917 0.197 0.852 0.951 0.980", "train-cityscapes"),
    ),
)

_TABLE_5 = Table(
    number=5,
    title="absolute trajectory error (ATE) on KITTI odometry, 5-frame snippets, mean +- std",
    protocol=(
        "KITTI odometry, sequences 09 and 10, trained on 00-08; one scale a snippet, sqrt(sum of squares)/5; "
        "which set of snippets was taken is not published"
    ),
    columns=tuple(
        Column(
            name=f"{sequence} ATE {statistic}",
            unit="m",
            better="lower",
            figure=f"5-frame ATE {statistic}, n-4 full snippets",
            sequence=sequence,
            count=_SNIPPETS[sequence],
        )
        for sequence in ("09", "10")
        for statistic in ("mean", "std")
    ),
    rows=(
        _odometry("SfM-Learner", "0.021 0.017 0.020 0.015"),
        _odometry("GeoNet", "0.012 0.007 0.012 0.009"),
        _odometry("CC", "0.012 0.007 0.012 0.008"),
        _odometry("Struct2Depth", "0.011 0.006 0.011 0.010"),
        _odometry("GLNet", "0.011 0.006 0.011 0.009"),
        _odometry(
            OURS, "0.012 0.008 0.011 0.010", "train-kitti-odometry-without-instances", name="w/o inst."
        ),
        _odometry(OURS, "0.010 0.013 0.011 0.008", "train-kitti-odometry", name="w/ inst."),
    ),
)

_TABLE_6 = Table(
    number=6,
    title="relative translation (t_err) and rotation (r_err) errors on KITTI odometry",
    protocol=(
        "KITTI odometry, sequences 09 and 10, trained on 00-08; segments of 100, 200, ... 800 m, mean over all; "
        "the alignment is not published (7-DoF is usual)"
    ),
    columns=tuple(
        Column(
            name=f"{sequence} {error}",
            unit=unit,
            better="lower",
            figure=error,
            sequence=sequence,
            count=_SEGMENTS[sequence],
        )
        for sequence in ("09", "10")
        for error, unit in (("t_err", "%"), ("r_err", "deg/100 m"))
    ),
    rows=(
        _odometry("GeoNet", "39.4 14.3 29.0 8.6"),
        _odometry("SC-SfM", "11.2 3.4 10.1 5.0"),
        _odometry(OURS, "10.2 5.2 10.1 4.8", "train-kitti-odometry-without-instances", name="w/o inst."),
        _odometry(OURS, "8.6 2.9 9.2 4.5", "train-kitti-odometry", name="w/ inst."),
    ),
)

TABLES: dict[int, Table] = {
    table.number: table for table in (_TABLE_2, _TABLE_3, _TABLE_4, _TABLE_5, _TABLE_6)
}
