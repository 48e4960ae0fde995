"""A street drawn from a seed: its course, houses, traffic, people, light and camera.

Seed s plays scenario s modulo their number, so that any run of seeds holds all of them.
Everything else is drawn from the seed.
"""

from __future__ import annotations

import numpy as np

from pipeline.streetworld.actors import Cast
from pipeline.streetworld.roads import Hill, Path, Street, stand
from pipeline.streetworld.town import draw_furniture_rows, draw_houses
from pipeline.streetworld.traffic import Footprints, Route, distance, draw_speed
from pipeline.streetworld.world import SCENARIOS, Ground, Light, Scene


def draw_scene(seed: int, frames: int, size: tuple[int, int] = (416, 128), fps: float = 10.0) -> Scene:
    """The scene of a seed, as seen by a camera of `size` (width, height) pixels for N frames."""
    rng = np.random.default_rng([seed, 0x57EE7])
    scenario = SCENARIOS[seed % len(SCENARIOS)]
    corner = scenario not in ("crossing", "turning", "following") and rng.random() < 0.14
    mean = rng.uniform(3.0, 6.5) if corner else rng.uniform(4.0, 15.0)
    speed = draw_speed(rng, frames, fps, mean)
    if scenario == "standing":
        speed = np.zeros(frames) if rng.random() < 0.5 else draw_speed(rng, frames, fps, mean, stand=True)
    driven = distance(speed, fps)

    street, s0 = _street(rng, scenario, corner, float(driven[-1]))
    s = s0 + driven
    lane = 0 if street.lanes == 1 else int(rng.integers(2))
    ego_d = -(lane + 0.5) * street.lane + rng.uniform(-0.25, 0.25)
    ego = Route.along(street.path, s, ego_d)

    taken = Footprints(frames)
    taken.admit(ego, 4.6, 1.9, margin=0.4)
    props = draw_furniture_rows(rng, street, s, frames, taken)
    cast = Cast(rng, street, scenario, s, speed, ego_d, fps, taken)
    cast.fill()
    style = str(rng.choice(["city", "suburb", "mixed"], p=[0.45, 0.3, 0.25]))
    props += draw_houses(rng, street, s, style)
    width, height = size
    f = width * rng.uniform(0.56, 0.60)
    K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) * rng.uniform(0.42, 0.50)], [0, 0, 1]])
    return Scene(
        seed=seed,
        scenario=scenario,
        street=street,
        ground=_draw_ground(rng),
        light=_draw_light(rng),
        K=K,
        size=size,
        fps=fps,
        world_T_camera=_camera(rng, street.hill, ego, speed),
        actors=cast.actors,
        props=props,
    )


def _street(rng: np.random.Generator, scenario: str, corner: bool, driven: float) -> tuple[Street, float]:
    """The street and where along it the camera starts."""
    lead = 60.0  # of straight road behind the first bend
    sign = rng.choice([-1.0, 1.0])
    junction = None
    if corner:
        turn = rng.uniform(0.7, np.pi / 2)
        radius = rng.uniform(13, 20)
        stretches = [(lead, 0.0), (radius * turn, sign / radius), (150.0, 0.0)]
        s0 = lead - rng.uniform(0, 12)
    elif rng.random() < 0.5 or scenario in ("crossing", "turning"):
        stretches = [(lead + 200.0, 0.0)]
        if rng.random() < 0.5:  # the street bends away further on
            stretches = [
                (lead + rng.uniform(45, 80), 0.0),
                (rng.uniform(30, 70), sign / rng.uniform(50, 140)),
                (150.0, 0.0),
            ]
        s0 = lead
        if scenario in ("crossing", "turning") or rng.random() < 0.25:
            junction = s0 + rng.uniform(13, 32) + 0.5 * driven
    else:
        a, b = 1 / rng.uniform(45, 220), 1 / rng.uniform(60, 250)
        stretches = [
            (lead, 0.0),
            (rng.uniform(40, 90), sign * a),
            (rng.uniform(30, 80), rng.choice([-1.0, 0.0]) * sign * b),
            (150.0, 0.0),
        ]
        s0 = lead + rng.uniform(-15, 15)
    lanes = 1 if rng.random() < 0.75 else 2
    lane = rng.uniform(3.0, 3.6)
    parking = {"empty": 0.4, "parked": 1.0}.get(scenario, 0.65)
    sides = [lanes * lane + (2.3 if rng.random() < parking else rng.uniform(0.2, 1.2)) for _ in range(2)]
    bend = (
        0.0 if rng.random() < 0.35 else rng.choice([-1 / rng.uniform(600, 2500), 1 / rng.uniform(1100, 3500)])
    )
    slope = 0.0 if rng.random() < 0.5 else rng.uniform(-0.04, 0.04)
    path = Path.build(0, 0, 0, stretches)
    shift = -float(path.pose(np.array(s0))[0])  # the camera starts at x = 0
    path = Path.build(shift, 0, 0, stretches)
    street = Street(
        path=path,
        hill=Hill(bend=bend, slope=slope),
        lane=lane,
        lanes=lanes,
        left=sides[0],
        right=sides[1],
        pavement=rng.uniform(1.8, 4.0),
        kerb=rng.uniform(0.09, 0.15),
        junction_s=junction,
        junction_half=lane + 0.3,
    )
    return street, s0


def _camera(rng: np.random.Generator, hill: Hill, ego: Route, speed: np.ndarray) -> np.ndarray:
    """(N, 4, 4) world_T_camera of a camera behind the windscreen, with the car's small shakes."""
    count = len(speed)
    world_T_car = stand(hill, ego.x, ego.y, ego.heading)
    shake = rng.normal(0, 1, (3, count))
    shake = 0.6 * shake + 0.4 * np.roll(shake, 1, axis=1)
    moving = np.minimum(speed / 5, 1)
    pitch = np.deg2rad(rng.uniform(-0.8, 0.8) + 0.10 * shake[0] * moving)
    roll = np.deg2rad(rng.normal(0, 0.3) + 0.08 * shake[1] * moving)
    height = rng.uniform(1.45, 1.75) + 0.006 * shake[2] * moving
    car_T_camera = np.zeros((count, 4, 4))
    axes = np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])
    for k in range(count):
        cp, sp, cr, sr = np.cos(pitch[k]), np.sin(pitch[k]), np.cos(roll[k]), np.sin(roll[k])
        tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ np.array(
            [[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]
        )
        car_T_camera[k, :3, :3] = axes @ tilt
        car_T_camera[k, :3, 3] = (0.4, 0.0, height[k])
    car_T_camera[:, 3, 3] = 1
    return world_T_car @ car_T_camera


def _draw_ground(rng: np.random.Generator) -> Ground:
    grey = rng.uniform(0.26, 0.46)
    return Ground(
        asphalt=np.clip(grey + rng.normal(0, 0.012, 3), 0, 1),
        pavement=np.clip(
            rng.uniform(0.45, 0.68) * np.array([1.0, rng.uniform(0.92, 1.0), rng.uniform(0.84, 1.0)]), 0, 1
        ),
        verge=np.array([[0.30, 0.38, 0.18], [0.42, 0.40, 0.34], [0.36, 0.42, 0.22]][rng.integers(3)])
        * rng.uniform(0.8, 1.2),
        tile=rng.uniform(0.5, 1.3),
        dash=rng.uniform(2.0, 4.0),
        centre_solid=bool(rng.random() < 0.25),
        edge_line=bool(rng.random() < 0.4),
        zebra=bool(rng.random() < 0.7),
    )


def _draw_light(rng: np.random.Generator) -> Light:
    """Weather: clear, milky or overcast, with its sun, sky and view."""
    weather = rng.choice(["clear", "milky", "overcast"], p=[0.5, 0.25, 0.25])
    turn, rise = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(28, 62))
    to_sun = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    warm = np.array([1.0, rng.uniform(0.86, 0.98), rng.uniform(0.70, 0.94)])
    strength = {"clear": 0.75, "milky": 0.45, "overcast": 0.12}[weather] * rng.uniform(0.85, 1.15)
    ambient = {"clear": 0.50, "milky": 0.62, "overcast": 0.78}[weather] * rng.uniform(0.9, 1.1)
    if weather == "clear":
        zenith, horizon = np.array([0.28, 0.46, 0.78]) * rng.uniform(0.85, 1.1), np.array([0.72, 0.82, 0.92])
    else:
        grey = rng.uniform(0.62, 0.85)
        zenith, horizon = (
            grey * np.array([0.92, 0.96, 1.0]),
            min(1.0, grey * 1.1) * np.array([1.0, 1.0, 0.99]),
        )
    return Light(
        to_sun=to_sun,
        sun=strength * warm,
        ambient=ambient * (np.array([0.94, 0.98, 1.06]) if weather == "clear" else np.ones(3)),
        zenith=zenith,
        horizon=horizon,
        clouds=float(rng.uniform(0.2, 1.0)),
        haze_m=float({"clear": 420, "milky": 200, "overcast": 260}[weather] * rng.uniform(0.7, 1.4)),
        shadows=weather != "overcast",
    )
