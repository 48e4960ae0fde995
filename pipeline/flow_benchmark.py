"""Compare flow methods on real frames: `python -m pipeline.flow_benchmark FRAMES [--raft WEIGHTS]`.

FRAMES is a folder of images or a video. Frames are cropped to the default stored size and
passed through JPEG as a build does. Prints, for every method side by side and medians over
the pairs:

    warp error    mean absolute difference (0..255) between the first frame and the second
                  fetched along the flow, over all pixels that any method keeps inside
    consistent    share of pixels at which forward and backward flow agree
    CPU ms        process time for both directions
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from pipeline.camera import FrameTransform
from pipeline.flow import FlowConfig, FlowModel, compute_flow, consistent, load_flow_model, warp_error
from pipeline.sources.images import IMAGE_SUFFIXES, read_image
from pipeline.sources.naming import files_below
from pipeline.sources.video import VideoReader, probe


@dataclass(frozen=True, kw_only=True)
class Score:
    """Medians over the pairs; error in 0..255."""

    error: float
    consistent: float
    cpu_s: float


def compare(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], methods: dict[str, tuple[FlowConfig, FlowModel | None]]
) -> dict[str, Score]:
    """Score every method on the same pixels of the same pairs of (H, W, 3) uint8 frames."""
    errors: dict[str, list[float]] = {name: [] for name in methods}
    shares: dict[str, list[float]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for a, b in pairs:
        maps = {}
        for name, (config, model) in methods.items():
            begin = time.process_time()
            flow = compute_flow(a, b, config, model)
            seconds[name].append(time.process_time() - begin)
            maps[name] = warp_error(a, b, flow.forward)
            shares[name].append(float(np.mean(consistent(flow)[0])))
        common = np.all([np.isfinite(error) for error in maps.values()], axis=0)
        for name, error in maps.items():
            errors[name].append(255 * float(error[common].mean()))
    return {
        name: Score(
            error=statistics.median(errors[name]),
            consistent=statistics.median(shares[name]),
            cpu_s=statistics.median(seconds[name]),
        )
        for name in methods
    }


def stored_frames(path: Path, wanted: Sequence[int], size: tuple[int, int]) -> list[np.ndarray]:
    """Frames of a folder or a video by number, resized, cropped and passed through JPEG."""
    if path.is_file():
        index = probe(path)
        reader = VideoReader(path=path, index=index, picks=np.arange(len(index.pts)))
        images = [next(reader.frames(number, number + 1)) for number in wanted]
    else:
        files = list(files_below(path, IMAGE_SUFFIXES))
        images = [read_image(files[number]) for number in wanted]
    transform = FrameTransform.cover((images[0].shape[1], images[0].shape[0]), size)
    return [_through_jpeg(transform.apply(image)) for image in images]


def frame_count(path: Path) -> int:
    """Frames in a folder of images or a video."""
    return len(probe(path).pts) if path.is_file() else sum(1 for _ in files_below(path, IMAGE_SUFFIXES))


def _through_jpeg(image: np.ndarray) -> np.ndarray:
    encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    return np.ascontiguousarray(simplejpeg.decode_jpeg(encoded.tobytes(), "RGB"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare flow methods on real frames.")
    parser.add_argument("frames", type=Path, help="folder of images, or a video")
    parser.add_argument("--raft", type=Path, help="RAFT-small weights; adds raft to the table")
    parser.add_argument("--pairs", type=int, default=12, help="pairs, spread evenly (default 12)")
    parser.add_argument("--size", type=int, nargs=2, default=(832, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--device", default="cpu", help="where raft runs (default cpu)")
    options = parser.parse_args()

    configs = {f"dis {preset}": FlowConfig(dis_preset=preset) for preset in ("ultrafast", "fast", "medium")}
    if options.raft is not None:
        for enlarge in (1, 2):
            config = FlowConfig(flow="raft", raft_weights=options.raft, raft_enlarge=enlarge)
            configs[f"raft small x{enlarge}"] = config
    methods = {name: (config, load_flow_model(config, options.device)) for name, config in configs.items()}

    firsts = np.linspace(0, frame_count(options.frames) - 2, options.pairs).astype(int)
    pairs = []
    for first in firsts:
        a, b = stored_frames(options.frames, [int(first), int(first) + 1], tuple(options.size))
        pairs.append((a, b))
    print(f"{options.frames.name}: {len(pairs)} pairs at {options.size[0]}x{options.size[1]}")
    print(f"{'method':<15} {'warp error':>10} {'consistent':>10} {'CPU ms':>8}")
    for name, score in compare(pairs, methods).items():
        print(f"{name:<15} {score.error:>10.2f} {score.consistent:>9.1%} {1000 * score.cpu_s:>8.1f}")


if __name__ == "__main__":
    main()
