"""The paper's Figure 1 on streetworld: a car that moves and turns, warped three ways, beside the truth.

    python -m workflows.figure1 OUT.png

The *intermediate frame* is the source frame as if the camera had not moved: actors at time s,
camera at time t. Here it is known exactly, as the ray caster renders it. Three ways to make it
from the source image, each given true depth and true camera motion:

    (a) inverse warp    target pixels look up the source by the TARGET's depth (struct2depth). Where
                        the car is at time t they look with the wrong depth, and where it was, too
    (b) reversed flow   the source's camera-only flow, splatted to the target and negated, as papers
                        on occlusion-aware flow do: blind to what hides what
    (c) forward warp    the source carried by its OWN depth, the nearest surface wins (ours)

The final view, for completeness: inverse warp by camera and true object motion together.
Frames are in metres; errors are means over the car's pixels, see `car_region`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from pipeline.errors import ConfigError, InstanceMotionError
from pipeline.streetworld.render import Frame, render_frames
from pipeline.streetworld.scene import draw_scene
from pipeline.streetworld.world import Actor, Scene
from training.geometry.camera import pixel_grid, project, unproject
from training.geometry.sampling import sample
from training.geometry.warp import forward_warp, inverse_warp
from training.losses import photometric
from workflows.figure1_picture import CAPTIONS, FOOTNOTE, HEADING, Panel, draw_figure
from workflows.streetworld import FIRST_SEED

SKY_M = 1e4
"""Depth that stands for the sky's: no camera motion of a frame or two shows there."""


@dataclass(frozen=True, kw_only=True)
class Figure1Config:
    """Which car, and which two frames."""

    seed: int = FIRST_SEED["test"] + 433
    """Seed of the street; those ending in 3 have cars that turn."""
    source: int = 15
    """Frame that is warped."""
    target: int = 17
    """Frame that gives the camera's place."""
    actor: int | None = None
    """Id of the car; the moving vehicle that turns most and is well in view, unless given."""
    size: tuple[int, int] = (832, 256)
    """Width and height in pixels."""
    frames: int = 24
    """Frames of the clip, on which its traffic depends."""

    def __post_init__(self) -> None:
        if self.frames < 2 or not {self.source, self.target} <= set(range(self.frames)):
            raise ConfigError(
                f"source {self.source} and target {self.target} must lie in [0, {self.frames - 1}]; "
                "change them or --frames"
            )
        if self.source == self.target:
            raise ConfigError(f"source and target are both frame {self.source}; give two frames")


DEFAULTS = Figure1Config()


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the ray caster knows of a pair of frames.

    intermediate: actors at time s seen by the camera at time t.
    s_T_t:        (4, 4) float32, the camera's motion, metres.
    composite:    (A + 1, 4, 4) float32, s_T_t of every region: the static world, then each actor's
                  own motion and the camera's together; row = id.
    K:            (3, 3) float32 pixels.
    """

    source: Frame
    target: Frame
    intermediate: Frame
    s_T_t: Tensor
    composite: Tensor
    K: Tensor


@dataclass(frozen=True, kw_only=True)
class Warped:
    """image: (1, 3, H, W) in [0, 1]; filled: (1, 1, H, W) bool, False in holes."""

    image: Tensor
    filled: Tensor


@dataclass(frozen=True, kw_only=True)
class Score:
    """Errors on a region of pixels.

    mae:         mean absolute difference, of 255.
    photometric: mean of `training.losses.photometric`, [0, 1].
    holes:       share of the region without a value, [0, 1]; holes count in no error.
    """

    mae: float
    photometric: float
    holes: float


def render_views(scene: Scene, source: int, target: int, device: str = "cpu") -> Views:
    """Render source, target and the intermediate frame between them."""
    # A clip's light is set at its middle frame: the short clip has that frame in its middle.
    middle = len(scene.world_T_camera) // 2
    actor_times, camera_times = [source, target, middle, source], [source, target, middle, target]
    short = replace(
        scene,
        world_T_camera=scene.world_T_camera[camera_times],
        actors=[replace(actor, poses=actor.poses[actor_times]) for actor in scene.actors],
    )
    frame_s, frame_t, _, intermediate = render_frames(short, device)
    s_T_world, world_T_t = np.linalg.inv(scene.world_T_camera[source]), scene.world_T_camera[target]
    motions = np.tile(s_T_world @ world_T_t, (1 + max([a.id for a in scene.actors], default=0), 1, 1))
    for actor in scene.actors:
        motions[actor.id] = s_T_world @ world_motion(actor, target, source) @ world_T_t
    return Views(
        source=frame_s,
        target=frame_t,
        intermediate=intermediate,
        s_T_t=torch.from_numpy(s_T_world @ world_T_t).float(),
        composite=torch.from_numpy(motions).float(),
        K=torch.from_numpy(scene.K).float(),
    )


def world_motion(actor: Actor, start: int, end: int) -> np.ndarray:
    """(4, 4) motion of an actor's points in the world, from one frame to another."""
    return actor.poses[end] @ np.linalg.inv(actor.poses[start])


def turned_deg(actor: Actor, start: int, end: int) -> float:
    """By how much an actor turns between two frames, degrees."""
    cosine = (np.trace(world_motion(actor, start, end)[:3, :3]) - 1) / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def find_car(scene: Scene, views: Views, source: int, target: int) -> Actor:
    """The moving vehicle that turns most, weighted by the pixels that all three frames show of it.

    Raises:
        ConfigError: nothing on wheels moves in all three frames.
    """

    def weight(actor: Actor) -> float:
        frames = (views.source, views.target, views.intermediate)
        pixels = min(int((frame.ids == actor.id).sum()) for frame in frames)
        return pixels * turned_deg(actor, source, target)

    cars = [a for a in scene.actors if a.moving and a.label != "person" and weight(a) > 0]
    if not cars:
        raise ConfigError(
            f"no vehicle turns in frames {source} and {target} of seed {scene.seed}; "
            "give other frames, or a seed ending in 3"
        )
    return max(cars, key=weight)


def inverse_view(views: Views) -> Warped:
    """(a) The source looked up by the target's depth, by the camera's motion alone."""
    warp = inverse_warp(
        _image(views.source), _depth(views.source), _depth(views.target), views.K[None], views.s_T_t[None, None], None
    )  # fmt: skip
    return Warped(image=warp.image, filled=warp.visible)


def reversed_flow_view(views: Views) -> Warped:
    """(b) The source looked up by its own camera-only flow, splatted to the target and negated.

    Each source pixel p leaves its flow f on the four pixels around p + f, with bilinear
    weights (Wang et al. 2018); where several land the weighted mean counts, near and far alike.
    """
    image, depth = _image(views.source), _depth(views.source)
    H, W = depth.shape[-2:]
    t_T_s = torch.linalg.inv(views.s_T_t)
    points = t_T_s[:3, :3] @ unproject(depth, views.K[None])[0].flatten(1) + t_T_s[:3, 3:]
    landed, z = project(points.view(1, 3, H, W), views.K[None])
    grid = pixel_grid(H, W, like=depth)
    flow, weight = splat(landed[0] - grid, landed[0], z[0, 0] > 0)
    return Warped(image=sample(image, (grid - flow)[None], padding="border"), filled=(weight > 0)[None, None])


def splat(values: Tensor, positions: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Leave values on the four pixels around their positions; where several meet, their weighted mean.

    Args:
        values: (H, W, C).
        positions: (H, W, 2) pixels (u, v); what lies outside is dropped.
        kept: (H, W) bool, which values take part.

    Returns:
        (H, W, C) means, 0 where nothing landed, and (H, W) sums of weights.
    """
    H, W, C = values.shape
    corner = positions.floor()
    total, weight = values.new_zeros(H * W, C), values.new_zeros(H * W)
    for dx in (0, 1):
        for dy in (0, 1):
            cell = corner + positions.new_tensor([dx, dy])
            share = (1 - (positions - cell).abs()).prod(-1)
            u, v = cell.long().unbind(-1)
            lands = kept & (u >= 0) & (u < W) & (v >= 0) & (v < H) & (share > 0)
            index = (v * W + u)[lands]
            total.index_add_(0, index, values[lands] * share[lands, None])
            weight.index_add_(0, index, share[lands])
    mean = total / torch.where(weight > 0, weight, 1)[:, None]
    return mean.view(H, W, C), weight.view(H, W)


def forward_view(views: Views, alpha: int = 3) -> Warped:
    """(c) The source carried by its own depth, the nearest surface in front."""
    t_T_s = torch.linalg.inv(views.s_T_t)
    warp = forward_warp(_image(views.source), _depth(views.source), views.K[None], t_T_s[None], alpha=alpha)
    return Warped(image=warp.image, filled=warp.filled)


def final_view(views: Views) -> Warped:
    """The target from the source: inverse warp by camera and true object motion, region by region."""
    regions = torch.from_numpy(views.target.ids.astype(np.int64))[None]
    warp = inverse_warp(
        _image(views.source), _depth(views.source), _depth(views.target), views.K[None], views.composite[None], regions
    )  # fmt: skip
    return Warped(image=warp.image, filled=warp.visible)


def car_region(views: Views, actor_id: int, margin_px: int = 2) -> np.ndarray:
    """(H, W) bool: the car in the intermediate frame, a margin, and its ghost.

    The ghost is where the car is in the target and not in the intermediate frame: there the
    target's depth is the car's, and the source shows what was behind it.
    """
    truth, target = views.intermediate.ids == actor_id, views.target.ids == actor_id
    square = np.ones((2 * margin_px + 1,) * 2, np.uint8)
    return cv2.dilate(truth.astype(np.uint8), square).astype(bool) | (target & ~truth)


def measure(warped: Warped, truth: Frame, region: np.ndarray) -> Score:
    """Errors of a warped image on a region; holes are left out, and stated."""
    expected, area = _image(truth), torch.from_numpy(region)[None, None]
    # In holes the truth stands in, so that windows that reach into them are not spoilt.
    image = torch.where(warped.filled, warped.image, expected)
    counted = area & warped.filled
    return Score(
        mae=float(255 * (image - expected).abs().mean(1, keepdim=True)[counted].mean()),
        photometric=float(photometric(expected, image)[counted].mean()),
        holes=float((area & ~warped.filled).sum() / area.sum()),
    )


def _image(frame: Frame) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frame.image).permute(2, 0, 1)[None].float() / 255


def _depth(frame: Frame) -> Tensor:
    """(1, 1, H, W) metres, the sky far away."""
    return torch.from_numpy(np.minimum(frame.depth_m, SKY_M))[None, None]


def figure1(out: Path, config: Figure1Config) -> str:
    """Render, warp and measure; writes the picture and returns the table.

    Raises:
        ConfigError: the scene has no such car.
    """
    scene = draw_scene(config.seed, config.frames, config.size)
    cars = {actor.id: actor for actor in scene.actors}
    if config.actor is not None and config.actor not in cars:
        raise ConfigError(f"seed {config.seed} has no actor {config.actor}, only {sorted(cars)}; choose one")
    views = render_views(scene, config.source, config.target)
    car = cars.get(config.actor or 0) or find_car(scene, views, config.source, config.target)
    region = car_region(views, car.id)
    body = views.target.ids == car.id
    if not region.any() or not body.any():
        raise ConfigError(f"actor {car.id} is not in view in frame {config.target}; give other frames")

    full = torch.ones(1, 1, *region.shape, dtype=torch.bool)
    shown = {
        "source": (Warped(image=_image(views.source), filled=full), views.intermediate, region),
        "target": (Warped(image=_image(views.target), filled=full), views.intermediate, region),
        "final": (final_view(views), views.target, body),
        "inverse": (inverse_view(views), views.intermediate, region),
        "reversed": (reversed_flow_view(views), views.intermediate, region),
        "forward": (forward_view(views), views.intermediate, region),
    }
    scores = {name: measure(*each) for name, each in shown.items()}
    panels = {
        name: _panel(name, warped, truth, car.id, scores[name]) for name, (warped, truth, _) in shown.items()
    }
    facts = _facts(scene, car, config)
    crop = region | body | (views.source.ids == car.id)
    Image.fromarray(_lay_out(panels, views, facts, crop)).save(out, format="PNG", optimize=True)
    return _table(scores, facts)


def _lay_out(panels: dict[str, Panel], views: Views, facts: list[str], crop: np.ndarray) -> np.ndarray:
    """The picture, (h, w, 3) uint8 RGB; `crop` (H, W) bool is what the panels show."""
    known = replace(
        panels["source"],
        title="truth: intermediate frame",
        note="rendered: cars at time s, camera at time t",
        image=views.intermediate.image,
        truth=None,
        figures="what (a), (b) and (c) should look like",
    )
    final = panels["final"]
    return draw_figure(
        [
            [panels["source"], panels["target"], known],
            [panels["inverse"], panels["reversed"], panels["forward"]],
        ],
        HEADING,
        [*facts, FOOTNOTE],
        {
            "source I_s": views.source.image,
            "target I_t": views.target.image,
            f"{final.title}: {final.figures.split(',')[0]} on the car": final.image,
        },
        crop,
    )


def _panel(name: str, warped: Warped, truth: Frame, actor_id: int, score: Score) -> Panel:
    title, note = CAPTIONS[name]
    return Panel(
        title=title,
        note=note,
        image=(warped.image[0].permute(1, 2, 0) * 255).round().byte().numpy(),
        truth=truth.image,
        filled=warped.filled[0, 0].numpy(),
        outline=truth.ids == actor_id,
        figures=f"error {score.mae:.1f}, photometric {score.photometric:.3f}, holes {score.holes:.1%}",
    )


def _facts(scene: Scene, car: Actor, config: Figure1Config) -> list[str]:
    """Which street, and what camera and car do between the frames."""
    s, t = config.source, config.target
    camera = scene.world_T_camera
    moved = np.linalg.norm(car.poses[t, :3, 3] - car.poses[s, :3, 3])
    away = np.linalg.norm(car.poses[s, :3, 3] - camera[s, :3, 3])
    driven = np.linalg.norm(camera[t, :3, 3] - camera[s, :3, 3])
    return [
        f"streetworld seed {scene.seed}, {scene.size[0]} x {scene.size[1]}, frames s = {s} and t = {t} "
        f"({abs(t - s) / scene.fps:g} s apart): the camera moves {driven:.2f} m; the {car.kind}, "
        f"{away:.0f} m away, moves {moved:.2f} m and turns {turned_deg(car, s, t):.1f} deg"
    ]


def _table(scores: dict[str, Score], facts: list[str]) -> str:
    """The errors as Markdown."""
    lines = [*facts, "", "| on the car | mean abs. error / 255 | photometric | holes |", "|---|---|---|---|"]
    for name, (title, _) in CAPTIONS.items():
        score = scores[name]
        lines.append(f"| {title} | {score.mae:.2f} | {score.photometric:.3f} | {score.holes:.1%} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        out: Annotated[Path, tyro.conf.Positional],
        config: Annotated[Figure1Config, tyro.conf.arg(name="")] = DEFAULTS,
    ) -> None:
        """The paper's Figure 1 on streetworld: writes the picture OUT (PNG) and prints its errors."""
        print(figure1(out, config))

    try:
        tyro.cli(command, prog="python -m workflows.figure1", args=arguments)
    except InstanceMotionError as error:  # the user can mend it; anything else is our bug
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:  # no such folder, full disk
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
