"""Sources for the tests of bad input: small videos and images, masks for them, and the real commands in this process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.mask_layer import DEFAULT_LAYER
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet, locate
from pipeline.sources.video import VideoReader, probe
from tests.pipeline.sources.videos import numbered_frames
from workflows import cli

WIDTH, HEIGHT = 64, 48
FRAMES = numbered_frames(8, WIDTH, HEIGHT)
# Stored as they are, without loss: what comes out must be what went in.
EXACT = ("--size", str(WIDTH), str(HEIGHT), "--codec", "png", "--fov-deg", "60")
HERE = ("--workers", "0", "--quiet")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def here(*arguments: object) -> Done:
    """`instance-motion` in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main(list(map(str, arguments)))
    return Done(code, out.getvalue(), errors.getvalue())


def one_line(done: Done) -> str:
    """The one line in which a command says why it failed; what it said before is no complaint."""
    assert done.code == 1, (done.code, done.out)
    lines = done.errors.splitlines()
    assert "Traceback" not in done.errors
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True], done.errors
    return lines[-1]


def car_masks(folder: Path, clips: Sequence[str] = ("nobody",), frames: int = 8) -> str:
    """`--detector` with a car that moves a pixel a frame, 20x16, in every frame of the clips named.

    The names of the clips and frames are those of videos.
    """
    for clip in clips:
        for number in range(frames):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[20:36, 10 + number : 30 + number] = 1
            write_labels(folder / clip / f"{number:06d}.png", labels)
    return f"masks:{folder}"


def write_labels(path: Path, labels: np.ndarray, classes: Mapping[int, str] | None = None) -> None:
    """A label image, and the table of its classes (all cars unless said otherwise)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
    table = classes or {int(label): "car" for label in np.unique(labels) if label}
    (path.parent / "classes.json").write_text(json.dumps(table or {"1": "car"}))


def build_here(source: Path | str, out: Path | str, detector: str, *options: object) -> Done:
    """A build without loss, in this process, with its report as JSON."""
    return here("build", source, out, *EXACT, "--detector", detector, *HERE, "--json", *options)


def decoded(path: Path) -> list[np.ndarray]:
    """Every frame of a whole video."""
    index = probe(path)
    return list(
        VideoReader(path=path, index=index, picks=np.arange(len(index.pts))).frames(0, len(index.pts))
    )


def stored(out: Path, name: str) -> list[np.ndarray]:
    """Every frame of a clip of a set."""
    with ShardSet(out) as shards:
        clip = shards.clip(name)
        return [shards.image(clip, frame) for frame in range(clip.frames)]


def clip_bytes(out: Path, name: str) -> list[bytes]:
    """All that a set holds of a clip, in the order of its frames: images, detections, label maps, tracks."""
    found = []
    with ShardSet(out) as shards:
        clip = shards.clip(name)
        found += [np.array(clip.K).tobytes(), shards.timestamps_s(clip).tobytes()]
        for frame in range(clip.frames):
            found += _frame_bytes(shards, clip, frame)
    return found


def _frame_bytes(shards: ShardSet, clip: ClipEntry, frame: int) -> list[bytes]:
    index, row = locate(clip, frame)
    frames, masks = shards.frames_file(index), shards.masks_file(DEFAULT_LAYER, index)
    evidence, instances = shards.evidence(clip, frame), masks.instances(row)
    detections, pairs = evidence.detections, masks.pairs(row)
    arrays = [
        frames.motion_px[row],
        detections.boxes,
        detections.scores,
        detections.classes,
        *detections.masks,
        evidence.overlaps.pixels,
        *vars(instances).values(),
        *vars(pairs).values(),
    ]
    return [frames.encoded(row), masks.encoded(row), *(np.asarray(array).tobytes() for array in arrays)]
