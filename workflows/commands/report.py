"""One HTML file about a run, that needs nothing else: figures, best and worst pictures, curves, settings.

    instance-motion report runs/first --out report.html --predictions predictions --shards shards --truth streets
    instance-motion report runs/first --out report.html --figures trained=a.json untrained=b.json

Pictures need predictions, shards and truth. Figures are those of the files given, side by side; where none is
given, predictions are scored here. Links to checkpoints, text and videos are relative to the page.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from evaluation.figure import Figure
from evaluation.predictions import read_index
from evaluation.streetworld import score_streetworld
from pipeline.configuration import read_yaml
from pipeline.errors import ConfigError
from pipeline.shards.hdf5 import publish
from pipeline.shards.manifest import read_manifest
from training.record import read_metrics
from workflows.locations import ShardLocation
from workflows.report import Link, Page, ReportError, figure_tables, read_figures, render
from workflows.report_pictures import Ranking, best_and_worst

ABOUT = "What a training run learned from unlabelled driving video: depth, camera motion and each object's own motion."
MAX_CLIPS = 200
"""Clips whose files are linked one by one."""
TEXTS = {
    "objects.csv": "objects (CSV)",
    "objects.json": "objects (JSON)",
    "kitti.txt": "trajectory (KITTI)",
    "tum.txt": "trajectory (TUM)",
}


@dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[Path]
    """Folder that `train` wrote."""
    out: Path
    """The page, an .html file."""
    predictions: Path | None = None
    """Folder that `predict` wrote."""
    shards: ShardLocation | None = None
    """The shard set that was predicted, a folder or a URL."""
    truth: Path | None = None
    """Folder of the streetworld clips that it was built from."""
    figures: tuple[str, ...] = ()
    """Files that `evaluate ... --json` printed, a column each: FILE.json, or NAME=FILE.json."""
    demo: Path | None = None
    """Folder that `demo` wrote; its videos are linked."""
    pictures: int = 3
    """Best and worst pictures, so many of each."""

    def __post_init__(self) -> None:
        if self.truth is not None and (self.predictions is None or self.shards is None):
            raise ConfigError("--truth needs --predictions and --shards as well: what is compared with it")
        if self.pictures < 1:
            raise ConfigError(f"pictures must be at least 1, got {self.pictures}")


def run(arguments: Arguments) -> int:
    page = make_page(arguments)
    publish(arguments.out, render(page).encode())
    print(arguments.out)
    return 0


def make_page(arguments: Arguments) -> Page:
    """Gather all that there is to show.

    Raises:
        InstanceMotionError: something that was given cannot be read; nothing is left out silently.
    """
    config_path = arguments.run / "config.yaml"
    config, metrics = read_yaml(config_path), _metrics(arguments.run)
    columns = _columns(arguments.figures)
    ranking = Ranking(best=(), worst=(), text="", legend=())
    if arguments.predictions and arguments.shards and arguments.truth:
        ranking = best_and_worst(arguments.predictions, arguments.shards, arguments.truth, arguments.pictures)
        columns = columns or {"value": score_streetworld(arguments.predictions, arguments.truth)}
    return Page(
        title=f"Run {Path(os.path.abspath(arguments.run)).name}",
        about=ABOUT,
        facts=_facts(config, metrics),
        commands=_commands(arguments),
        configuration=config_path.read_text(encoding="utf-8"),
        metrics=metrics,
        tables=tuple(figure_tables(columns)),
        ranking=ranking.text,
        legend=ranking.legend,
        best=ranking.best,
        worst=ranking.worst,
        links=tuple(_links(arguments)),
    )


def _metrics(run: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(run)
    except (ValueError, RecursionError) as error:
        where = run / "metrics.jsonl"
        raise ReportError(f"{where}: no rows of metrics ({error}); take it away for a page without") from None


def _columns(files: Sequence[str]) -> dict[str, list[Figure]]:
    """Name of the column -> figures."""
    columns: dict[str, list[Figure]] = {}
    for text in files:
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            name, path = Path(text).stem, text
        if name in columns:
            raise ConfigError(f"--figures: two columns are called {name!r}; give one as NAME=FILE.json")
        columns[name] = read_figures(Path(path))
    return columns


def _facts(config: Mapping[str, Any], metrics: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """The settings that tell runs apart; a configuration of another version may lack some."""
    steps = [row["step"] for row in metrics if isinstance(row, dict) and isinstance(row.get("step"), int)]
    shards, size = _list(_at(config, "data", "shards")), _list(_at(config, "data", "size"))
    values = {
        "steps": _at(config, "steps"),
        "last step logged": max(steps, default=None),
        "batch": _at(config, "data", "batch_size"),
        "training size": "x".join(map(_plain, size)) or "as stored",
        "trained on": ", ".join(_plain(_at(each, "folder")) for each in shards),
        "begun from": _at(config, "init_from"),
        "depth network": _at(config, "networks", "depth", "architecture"),
        "camera network": _at(config, "networks", "ego", "architecture"),
        "object network": _at(config, "networks", "objects", "architecture"),
        "objects' warp": _at(config, "objective", "motion", "object_warp"),
    }
    return tuple((name, _plain(value)) for name, value in values.items() if _plain(value))


def _at(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: Any) -> str:
    """A name or a number as text; empty for what is neither, however deep it may be nested."""
    return str(value) if isinstance(value, str | int | float) else ""


def _commands(arguments: Arguments) -> tuple[str, ...]:
    """What to type to get the same run, predictions and figures, and this page."""
    name, run = "instance-motion", str(arguments.run)
    commands = [[name, "train", "--recipe", f"{run}/config.yaml", "--out", f"{run}-again"]]
    given: list[str] = []
    for option in ("predictions", "shards", "truth", "demo"):
        value = getattr(arguments, option)
        given += [f"--{option}", str(value)] if value is not None else []
    if arguments.predictions and arguments.shards:
        commands.append([name, "predict", run, str(arguments.shards), str(arguments.predictions)])
    if arguments.predictions and arguments.truth:
        commands.append(
            [name, "evaluate", "motion", str(arguments.predictions), str(arguments.truth), "--json"]
        )
    given += ["--figures", *arguments.figures] if arguments.figures else []
    commands.append([name, "report", run, "--out", str(arguments.out), *given])
    return tuple(map(shlex.join, commands))


def _links(arguments: Arguments) -> list[Link]:
    """Files that are there, from the page's folder."""
    # By text, as browsers do: a folder that is a symbolic link has no other parent for them.
    start = os.path.dirname(os.path.abspath(arguments.out))

    def links(group: str, files: Mapping[str, Path]) -> list[Link]:
        return [
            Link(group=group, name=name, target=os.path.relpath(path, start))
            for name, path in files.items()
            if path.exists()
        ]

    names = {"best.pt": "best checkpoint", "last.pt": "last checkpoint", "config.yaml": "settings",
             "metrics.jsonl": "metrics", "tensorboard": "tensorboard"}  # fmt: skip
    found = links("run", {shown: arguments.run / file for file, shown in names.items()})
    if arguments.shards is not None:
        read_manifest(arguments.shards)  # a link to what is no shard set would mislead
    if isinstance(arguments.shards, Path):  # pages do not open s3://
        found += links("shard set", {"folder": arguments.shards, "index": arguments.shards / "shardset.json"})
    clips: list[tuple[str, dict[str, Path]]] = []
    if arguments.predictions is not None:
        found += links("predictions", {"folder": arguments.predictions})
        text = arguments.predictions / "text"
        clips += [(clip, _texts(text, clip)) for clip in read_index(arguments.predictions).clips]
    if arguments.demo is not None:
        found += links("demo", {"folder": arguments.demo})
        for clip, video in _videos(arguments.demo):
            clips.append((f"demo: {clip}", {"video": video, **_texts(arguments.demo, clip)}))
    for clip, files in clips[:MAX_CLIPS]:
        found += links(clip, files)
    if clips[MAX_CLIPS:]:
        folder = arguments.demo or arguments.predictions
        found += links(f"and {len(clips) - MAX_CLIPS} clips more", {"in their folder": folder or Path()})
    return found


def _videos(demo: Path) -> list[tuple[str, Path]]:
    """(clip name, video) of a folder that `demo` wrote."""
    videos = sorted(demo.rglob("*.mp4"))
    if not videos:
        raise ReportError(f"{demo}: holds no video; give the folder that `demo` wrote")
    return [(video.relative_to(demo).with_suffix("").as_posix(), video) for video in videos]


def _texts(folder: Path, clip: str) -> dict[str, Path]:
    return {shown: folder / f"{clip}.{suffix}" for suffix, shown in TEXTS.items()}
