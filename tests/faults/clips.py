"""A source that costs nothing: tiny videos, and masks for them, so that a build needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from tests.pipeline.sources.videos import encode, numbered_frames

SIZE = (64, 48)


def write_source(folder: Path, clips: Mapping[str, int]) -> tuple[Path, Path]:
    """Videos of the given lengths, and label images of two cars that move; returns both folders."""
    source, masks = folder / "videos", folder / "masks"
    source.mkdir(parents=True)
    masks.mkdir()
    (masks / "classes.json").write_text(json.dumps({"1": "car", "2": "car"}))
    for name, count in clips.items():
        encode(source / f"{name}.mp4", numbered_frames(count, *SIZE))
        (masks / name).mkdir()
        for frame in range(count):
            labels = np.zeros(SIZE[::-1], np.uint8)
            labels[24:36, 2 * frame % 40 : 2 * frame % 40 + 16] = 1
            labels[8:16, 44 - 2 * frame % 40 : 56 - 2 * frame % 40] = 2
            assert cv2.imwrite(str(masks / name / f"{frame:06d}.png"), labels)
    return source, masks
