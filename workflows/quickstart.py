"""The quickstart: synthetic streets -> video -> shards -> other masks -> tables and pictures.

Everything a user does with real video, in minutes, offline, on two CPU cores, with figures
that can be checked, because streetworld knows the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.masks import ap_table
from evaluation.tracks import figures
from pipeline.build import DEFAULT_LAYER, BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.graph import GraphConfig
from pipeline.inspection import compare_layers, summarise
from pipeline.matching import MaskConfig
from pipeline.overlay import contact_sheet, draw, overlay_frames, write_picture, write_video
from pipeline.remask import remask
from pipeline.shards.reader import ShardSet
from workflows.commands.build import summary
from workflows.commands.evaluate import score_masks, score_tracks
from workflows.streetworld import render

STRICT = "strict"


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """How much of everything."""

    clips: int = 6
    """Clips of held-out seeds."""
    frames: int = 12
    """Frames of each clip."""
    size: tuple[int, int] = (416, 128)
    """Width and height of the videos and of the stored frames."""
    graph: GraphConfig = field(default_factory=lambda: GraphConfig(workers=2))


def quickstart(out: Path, config: QuickstartConfig, say: Callable[[str], None] = print) -> None:
    """Run all steps into OUT, saying before each what a user would type. Finished steps are kept."""
    streets, shards_folder = out / "streets", out / "shards"

    with _step(say, f"instance-motion streetworld {streets} --split test --clips {config.clips}"):
        render(streets, "test", config.clips, config.frames, config.size, workers=2)

    with _step(say, f"instance-motion build {streets / 'test'} {shards_folder}"):
        settings = BuildConfig(frames=FramesConfig(size=config.size))
        say(summary(build(streets / "test", shards_folder, settings, config.graph)))

    with _step(say, f"instance-motion remask {shards_folder} --name {STRICT} --min-score 0.8 --min-area 150"):
        remask(shards_folder, STRICT, MaskConfig(min_score=0.8, min_area=150), config.graph)
        with ShardSet(shards_folder) as shards:
            say(compare_layers(shards, DEFAULT_LAYER, STRICT).table())

    with ShardSet(shards_folder) as shards:
        clips = list(shards.manifest.clips)
        with _step(say, f"instance-motion inspect {shards_folder} --video overlay.mp4 --sheet sheet.jpg"):
            say(summarise(shards).table())
            write_video(out / "overlay.mp4", overlay_frames(shards, DEFAULT_LAYER, clips), fps=10)
            write_picture(out / "sheet.jpg", contact_sheet(shards, DEFAULT_LAYER, clips))
            write_picture(out / "picture.jpg", picture(shards))

        with _step(say, f"instance-motion evaluate tracks {shards_folder} {streets / 'test'}"):
            protocol = "held-out streets, detected masks"
            for figure in figures(score_tracks(shards, streets / "test", DEFAULT_LAYER, 64), protocol):
                say(f"{figure.name:32}  {figure.value:.3f} {figure.unit} (of {figure.count})")

        with _step(say, f"instance-motion evaluate masks {shards_folder} {streets / 'test'}"):
            say(ap_table(score_masks(shards, streets / "test")))

    say(f"\nLook at {out / 'sheet.jpg'}, {out / 'overlay.mp4'} and {out / 'picture.jpg'}.")


def picture(shards: ShardSet) -> np.ndarray:
    """Two clips, three frames each: the frame above, its tracked instances below."""
    ranked = sorted(shards.manifest.clips, key=lambda clip: -_busy(shards, clip.name))
    blocks = []
    for clip in ranked[:2]:
        chosen = np.linspace(0, clip.frames - 1, 3).round().astype(int)
        plain = np.concatenate([shards.image(clip, int(frame)) for frame in chosen], axis=1)
        drawn = np.concatenate([draw(shards, DEFAULT_LAYER, clip, int(frame)) for frame in chosen], axis=1)
        blocks += [plain, drawn]
    return np.concatenate(blocks, axis=0)


def _busy(shards: ShardSet, name: str) -> int:
    """Matched pixels of a clip: how much there is to see."""
    clip = shards.clip(name)
    return sum(int(shards.instances(DEFAULT_LAYER, clip, frame).area.sum()) for frame in range(clip.frames))


@contextmanager
def _step(say: Callable[[str], None], line: str) -> Iterator[None]:
    say(f"\n$ {line}")
    begin = time.monotonic()
    yield
    say(f"[{time.monotonic() - begin:.1f} s]")
