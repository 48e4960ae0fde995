"""How `stored/v1` was made. Not run by tests: a stored set must never change.

    python -m tests.pipeline.shards.make_stored FOLDER

Two clips of 64x48 images in which a bright square moves 3 pixels a frame over noise; its
mask is given. Everything is in the shard set: a kept masks layer and a second one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from pipeline.build import BuildConfig, build
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.graph import GraphConfig
from pipeline.matching import MaskConfig
from pipeline.plan import PlanConfig
from pipeline.remask import remask
from pipeline.sources.scan import SourceConfig

SIZE = (64, 48)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "images"
        entries: dict[str, list[dict]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "car"}],
        }
        for name, frames in (("first", 4), ("second", 3)):
            (source / name).mkdir(parents=True)
            noise = cv2.GaussianBlur(
                np.random.default_rng(frames).integers(0, 255, (*SIZE[::-1], 3), np.uint8), (5, 5), 0
            )
            for frame in range(frames):
                x, y = 8 + 3 * frame, 14
                image = noise.copy()
                square = np.random.default_rng(7).integers(150, 255, (16, 20, 3), np.uint8)
                image[y : y + 16, x : x + 20] = cv2.GaussianBlur(square, (3, 3), 0)
                cv2.imwrite(str(source / name / f"{frame:06d}.png"), image)
                number = len(entries["images"]) + 1
                entries["images"].append(
                    {
                        "id": number,
                        "file_name": f"{name}/{frame:06d}.png",
                        "width": SIZE[0],
                        "height": SIZE[1],
                    }
                )
                corners = [x, y, x + 20, y, x + 20, y + 16, x, y + 16]
                entries["annotations"].append(
                    {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "segmentation": [corners],
                     "bbox": [x, y, 20, 16], "area": 320, "score": 0.75}
                )  # fmt: skip
        masks = Path(folder) / "masks.json"
        masks.write_text(json.dumps(entries))
        config = BuildConfig(
            source=SourceConfig(fov_deg=70.0),
            frames=FramesConfig(size=SIZE, codec="png"),
            detector=DetectorConfig(detector=f"masks:{masks}"),
            plan=PlanConfig(frames_per_piece=2, frames_per_file=3),
        )
        build(source, out, config, GraphConfig(workers=0), quiet=True)
        remask(out, "large", MaskConfig(min_area=1000), GraphConfig(), quiet=True)
    for extra in (".lease", "build-report.json"):
        (out / extra).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
