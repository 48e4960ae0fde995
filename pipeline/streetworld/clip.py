"""One clip from a seed to its folder: video, calibration and truth, whole or not at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.errors import ConfigError
from pipeline.shards.hdf5 import publish
from pipeline.streetworld.flow import exact_flow
from pipeline.streetworld.render import Frame, Jitter, render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.truth import (
    CAMERA_FILE,
    CAMERA_FORMAT,
    CAMERA_VERSION,
    TRUTH_FILE,
    VIDEO_FILE,
    Objects,
    Truth,
    read_made_with,
    write_truth,
)
from pipeline.streetworld.world import Scene

CRF = 12


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a clip is rendered; what it shows is drawn from its seed."""

    frames: int = 24
    """Frames of the clip, 2 or more."""
    size: tuple[int, int] = (416, 128)
    """Width and height in pixels, even numbers."""
    fps: float = 10.0
    """Frames a second."""
    jitter: Jitter = field(default_factory=Jitter)
    """Exposure jitter and pixel noise."""

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ConfigError(f"a clip has at least 2 frames, got {self.frames}")
        if any(n < 16 or n > 4096 or n % 2 for n in self.size):
            raise ConfigError(f"width and height must be even numbers from 16 to 4096, got {self.size}")
        if not 0 < self.fps <= 1000:
            raise ConfigError(f"fps must lie in (0, 1000], got {self.fps}")

    def record(self) -> dict:
        """The configuration as JSON values, as truth files keep it."""
        return json.loads(json.dumps(asdict(self)))


def is_rendered(folder: Path, seed: int, config: ClipConfig) -> bool:
    """Whether a folder already holds this clip."""
    return read_made_with(folder / TRUTH_FILE) == (seed, config.record())


def render_clip(
    folder: Path,
    seed: int,
    config: ClipConfig,
    device: str = "cpu",
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Render a clip into a new folder, which appears only when it is complete.

    A folder of that name rendered with another seed or configuration is replaced.
    """
    scene = draw_scene(seed, config.frames, config.size, config.fps)
    frames = []
    for frame in render_frames(scene, device, config.jitter):
        frames.append(frame)
        on_frame()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        publish(partial / VIDEO_FILE, encode_video([f.image for f in frames], config.fps))
        publish(partial / CAMERA_FILE, json.dumps(_camera(scene), indent=1).encode())
        write_truth(partial / TRUTH_FILE, assemble_truth(scene, frames, config))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def encode_video(images: list[np.ndarray], fps: float) -> bytes:
    """An H.264 file (MP4, yuv420p) of (H, W, 3) uint8 RGB images; the same bytes on every run."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(CRF), "preset": "fast", "threads": "1"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return memory.getvalue()


def assemble_truth(scene: Scene, frames: list[Frame], config: ClipConfig) -> Truth:
    """Truth of a rendered scene, with the exact flow."""
    actors, poses = scene.actors, scene.world_T_camera
    flows, states = [], []
    for t, (now, then) in enumerate(zip(frames[:-1], frames[1:], strict=True)):
        camera = np.linalg.inv(poses[t + 1])
        motion = {0: camera @ poses[t]}
        for actor in actors:
            motion[actor.id] = camera @ actor.poses[t + 1] @ np.linalg.inv(actor.poses[t]) @ poses[t]
        flow, state = exact_flow(now.depth_m, now.ids, then.depth_m, then.ids, scene.K, motion)
        flows.append(flow)
        states.append(state)
    count = len(frames)
    ids = np.stack([f.ids for f in frames])
    table = np.stack([np.bincount(i.ravel(), minlength=len(actors) + 1) for i in ids])
    objects = Objects(
        id=np.array([a.id for a in actors], np.uint16),
        label=tuple(a.label for a in actors),
        kind=tuple(a.kind for a in actors),
        size_m=np.array([a.size for a in actors]).reshape(-1, 3),
        moving=np.array([a.moving for a in actors], bool),
        world_T_object=np.array([a.poses for a in actors]).reshape(-1, count, 4, 4).swapaxes(0, 1),
        visible_px=table[:, [a.id for a in actors]].astype(np.int32).reshape(count, len(actors)),
    )
    return Truth(
        depth_m=np.stack([f.depth_m for f in frames]),
        ids=ids,
        flow_px=np.stack(flows),
        flow_state=np.stack(states),
        K=scene.K,
        world_T_camera=poses,
        timestamps_s=np.arange(count) / scene.fps,
        objects=objects,
        scenario=scene.scenario,
        seed=scene.seed,
        config=config.record(),
    )


def _camera(scene: Scene) -> dict:
    """Calibration as `camera.json` holds it."""
    K = scene.K
    return {
        "format": CAMERA_FORMAT,
        "version": CAMERA_VERSION,
        "model": "pinhole",
        "width": scene.size[0],
        "height": scene.size[1],
        "fx": K[0, 0],
        "fy": K[1, 1],
        "cx": K[0, 2],
        "cy": K[1, 2],
        "fps": scene.fps,
        "units": "pixels; (0, 0) is the centre of the top-left pixel; fps in frames a second",
    }
