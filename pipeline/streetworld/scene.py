"""A street drawn from a seed: its course, houses, traffic, people, light and camera.

`SCENARIOS` names the traffic; seed s plays scenario s modulo their number, so that any
run of seeds holds all of them. Everything else is drawn from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.streetworld.roads import Hill, Path, Street, stand
from pipeline.streetworld.scenery import draw_frontage, draw_furniture, draw_house, draw_person, draw_tree
from pipeline.streetworld.solids import Solid
from pipeline.streetworld.traffic import Footprints, Route, distance, draw_speed
from pipeline.streetworld.vehicles import draw_vehicle

SCENARIOS = (
    "following",  # the car ahead keeps the camera's speed: no parallax, the infinite-depth case
    "oncoming",
    "crossing",
    "turning",
    "pedestrians",
    "mixed",
    "overtaking",  # faster and slower cars in the camera's direction
    "parked",  # nothing moves but the camera
    "standing",  # the camera stands for a part or all of the clip
    "empty",  # no objects at all
)

AHEAD_M = 110.0
"""How far ahead of the camera's course objects and street furniture are drawn."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A rigid object with an id: its solids in its own frame and its pose in every frame.

    poses: (N, 4, 4) world_T_object, origin on the ground under its middle
    size:  (3,) length, width, height, metres
    """

    id: int
    label: str
    kind: str
    size: np.ndarray
    solids: list[Solid]
    poses: np.ndarray
    moving: bool


@dataclass(frozen=True, kw_only=True)
class Prop:
    """Static background: solids and world_T_prop (4, 4)."""

    solids: list[Solid]
    pose: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun direction (towards it, world), its colour, the sky's, and how far one sees."""

    to_sun: np.ndarray
    sun: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze_m: float
    shadows: bool


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Colours and markings of road and pavement."""

    asphalt: np.ndarray
    pavement: np.ndarray
    verge: np.ndarray
    tile: float
    dash: float
    centre_solid: bool
    edge_line: bool
    zebra: bool


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a clip shows. world_T_camera (N, 4, 4), camera x right, y down, z forward."""

    seed: int
    scenario: str
    street: Street
    ground: Ground
    light: Light
    K: np.ndarray
    size: tuple[int, int]
    fps: float
    world_T_camera: np.ndarray
    actors: list[Actor] = field(repr=False)
    props: list[Prop] = field(repr=False)


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
    props = _furniture(rng, street, s, frames, taken)
    cast = _Cast(rng, street, scenario, s, speed, ego_d, fps, taken)
    cast.fill()
    style = str(rng.choice(["city", "suburb", "mixed"], p=[0.45, 0.3, 0.25]))
    props += _houses(rng, street, s, style)
    width, height = size
    f = width * rng.uniform(0.56, 0.60)
    K = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) * rng.uniform(0.42, 0.50)], [0, 0, 1]])
    return Scene(
        seed=seed,
        scenario=scenario,
        street=street,
        ground=_ground(rng),
        light=_light(rng),
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


class _Cast:
    """Draws the actors of a scene one after another; each must find free space."""

    def __init__(self, rng, street, scenario, s, speed, ego_d, fps, taken) -> None:
        self.rng, self.street, self.scenario, self.taken = rng, street, scenario, taken
        self.s, self.speed, self.ego_d, self.fps = s, speed, ego_d, fps
        self.frames = len(s)
        self.actors: list[Actor] = []

    def fill(self) -> None:
        rng, scenario = self.rng, self.scenario
        if scenario == "empty":
            return
        first = {"following": self.follow, "oncoming": self.oncoming, "crossing": self.crossing, "turning": self.turning,
                 "pedestrians": self.crosser, "overtaking": self.same_way, "standing": self.crosser}.get(scenario)  # fmt: skip
        if first is not None:
            for _ in range(int(rng.integers(1, 3 if scenario == "following" else 4))):
                first()
        if scenario != "parked":
            more = [self.oncoming, self.oncoming, self.same_way, self.crosser, self.walker, self.walker]
            if self.street.junction_s is not None:
                more += [self.crossing, self.turning]
            if scenario == "mixed" and rng.random() < 0.5:
                self.follow()
            for _ in range(int(rng.integers(0, 5)) + (3 if scenario == "mixed" else 0)):
                more[rng.integers(len(more))]()
            for _ in range(int(rng.integers(0, 7)) + (4 if scenario == "pedestrians" else 0)):
                self.walker()
        self.parked()

    def follow(self) -> None:
        """A car straight ahead (or in the next lane) that keeps the camera's speed exactly."""
        gap = self.rng.uniform(8.5, 24)
        d = self.ego_d + self.rng.uniform(-0.15, 0.15)
        self.drive(Route.along(self.street.path, self.s + gap, d))

    def same_way(self) -> None:
        rng = self.rng
        lane = int(rng.integers(self.street.lanes))
        mean = np.clip(self.speed.mean() * rng.uniform(0.4, 1.7) + rng.uniform(0, 2), 2.5, 17)
        start = self.s.mean() + rng.uniform(7, 45)
        travel = distance(draw_speed(rng, self.frames, self.fps, mean), self.fps)
        d = -(lane + 0.5) * self.street.lane + rng.uniform(-0.2, 0.2)
        self.drive(Route.along(self.street.path, start + travel - travel.mean(), d))

    def oncoming(self) -> None:
        rng = self.rng
        lane = int(rng.integers(self.street.lanes))
        travel = distance(draw_speed(rng, self.frames, self.fps, rng.uniform(3, 15)), self.fps)
        middle = self.s.mean() + rng.uniform(6, 60)
        d = (lane + 0.5) * self.street.lane + rng.uniform(-0.2, 0.2)
        self.drive(Route.along(self.street.path, middle - travel + travel.mean(), d, reverse=True))

    def crossing(self) -> None:
        """Straight across the junction, from the left or from the right."""
        rng = self.rng
        x, y, heading = self.junction()
        side = rng.choice([-1.0, 1.0])
        path = Path.build(x, y, heading + side * np.pi / 2, [(1.0, 0.0)])
        travel = distance(draw_speed(rng, self.frames, self.fps, rng.uniform(3, 10)), self.fps)
        middle = rng.uniform(-10, 10)
        self.drive(Route.along(path, middle + travel - travel.mean(), -self.street.lane / 2))

    def turning(self) -> None:
        """Around the junction's corner, from any of its arms, most of the arc within the clip."""
        rng, half = self.rng, self.street.lane / 2
        x, y, heading = self.junction()
        arm = heading + rng.choice([0.0, np.pi, np.pi, np.pi / 2, -np.pi / 2])
        left = rng.random() < 0.6
        radius = rng.uniform(5.5, 9.0) if left else rng.uniform(4.2, 5.5)
        straight = 40.0
        start = (half if left else -half) - radius - straight
        c, sn = np.cos(arm), np.sin(arm)
        arc = radius * np.pi / 2
        path = Path.build(x + c * start + sn * half, y + sn * start - c * half, arm,
                          [(straight, 0.0), (arc, (1 if left else -1) / radius), (40.0, 0.0)])  # fmt: skip
        travel = distance(draw_speed(rng, self.frames, self.fps, rng.uniform(2.5, 6.0)), self.fps)
        middle = straight + arc * rng.uniform(0.2, 0.8)
        self.drive(Route.along(path, middle + travel - travel.mean(), 0.0))

    def junction(self) -> tuple[float, float, float]:
        x, y, heading = self.street.path.pose(np.array(self.street.junction_s))
        return float(x), float(y), float(heading)

    def parked(self) -> None:
        rng, street = self.rng, self.street
        for side, width in ((1, street.left), (-1, street.right)):
            if width < street.lanes * street.lane + 2:
                continue
            density = rng.uniform(0.3, 1.0)
            s = self.s[0] + rng.uniform(-4, 4)
            while s < self.s[-1] + 0.8 * AHEAD_M:
                kind, solids, size = draw_vehicle(rng)
                s += size[0] / 2
                near = street.junction_s is not None and abs(s - street.junction_s) < street.junction_half + 6
                if rng.random() < density and not near:
                    backwards = (side > 0) != (rng.random() < 0.1)
                    offset = side * (width - 0.25 - size[1] / 2 - rng.uniform(0, 0.15))
                    spot = np.full(self.frames, s)
                    route = Route.along(street.path, spot, offset, reverse=backwards)
                    self.place("car", kind, solids, size, route, moving=False)
                s += size[0] / 2 + rng.uniform(0.6, 2.0)

    def crosser(self) -> None:
        """A person who crosses the street."""
        rng, street = self.rng, self.street
        s = self.s.mean() + rng.uniform(6, 35)
        x, y, heading = street.path.pose(np.array(s))
        way = rng.choice([-1.0, 1.0])
        path = Path.build(
            float(x), float(y), float(heading) + way * np.pi / 2 + rng.normal(0, 0.12), [(1.0, 0.0)]
        )
        travel = rng.uniform(0.8, 1.9) * np.arange(self.frames) / self.fps
        middle = rng.uniform(-1, 1) * (street.left + street.right) / 2
        self.walk(Route.along(path, middle + travel - travel.mean(), 0.0))

    def walker(self) -> None:
        """A person on the pavement, walking along it or standing."""
        rng, street = self.rng, self.street
        left = rng.random() < 0.5
        d = (street.left + rng.uniform(0.5, street.pavement - 0.3)) * 1.0
        d = d if left else -(street.right + rng.uniform(0.5, street.pavement - 0.3))
        start = self.s.mean() + rng.uniform(3, 40)
        if rng.random() < 0.2:
            route = Route.along(street.path, np.full(self.frames, start), d)
            turn = rng.uniform(0, 2 * np.pi)
            self.walk(Route(x=route.x, y=route.y, heading=route.heading + turn), moving=False)
            return
        travel = rng.uniform(0.8, 1.8) * np.arange(self.frames) / self.fps
        reverse = bool(rng.random() < 0.5)
        travel = -travel if reverse else travel
        self.walk(Route.along(street.path, start + travel - travel.mean(), d, reverse=reverse))

    def drive(self, route: Route) -> None:
        kind, solids, size = draw_vehicle(self.rng)
        self.place("car", kind, solids, size, route, moving=True)

    def walk(self, route: Route, moving: bool = True) -> None:
        solids, size = draw_person(self.rng, moving)
        self.place("person", "pedestrian", solids, size, route, moving=moving)

    def place(
        self, label: str, kind: str, solids: list[Solid], size: np.ndarray, route: Route, moving: bool
    ) -> None:
        if not self.taken.admit(route, size[0], size[1]):
            return
        street = self.street
        lift: np.ndarray | float = 0.0
        if label == "person":  # steps up the kerb within 30 cm
            beyond = street.beyond_kerb(*street.path.coordinates(route.x, route.y))
            lift = street.kerb * np.clip((beyond + 0.15) / 0.3, 0, 1)
        poses = stand(street.hill, route.x, route.y, route.heading, lift)
        if label == "person":  # people stand upright on a slope
            up = stand(Hill(bend=0, slope=0), route.x, route.y, route.heading)
            poses = np.concatenate([np.concatenate([up[:, :3, :3], poses[:, :3, 3:]], 2), poses[:, 3:]], 1)
        moving = bool(moving and np.abs(poses - poses[0]).max() > 0)
        self.actors.append(Actor(id=len(self.actors) + 1, label=label, kind=kind, size=size, solids=solids, poses=poses,
                                 moving=moving))  # fmt: skip


def _furniture(
    rng: np.random.Generator, street: Street, s: np.ndarray, frames: int, taken: Footprints
) -> list[Prop]:
    """Lamps, signs and trees along both kerbs."""
    props = []
    green = rng.choice([0.0, 0.35, 0.75])
    for side, width in ((1, street.left), (-1, street.right)):
        at = s[0] - 5 + rng.uniform(0, 8)
        while at < s[-1] + AHEAD_M:
            beside = street.junction_s is not None and abs(at - street.junction_s) < street.junction_half + 2
            tree = rng.random() < green
            solids, radius = (draw_tree(rng), 0.3) if tree else draw_furniture(rng)
            d = side * (width + 0.55 + rng.uniform(0, 0.25))
            route = Route.along(street.path, np.full(frames, at), d)
            if not beside and taken.admit(route, 2 * radius, 2 * radius, margin=0.1):
                props.append(Prop(solids=solids, pose=_upright(street, route, side)))
            at += rng.uniform(6, 16)
    return props


def _upright(street: Street, route: Route, side: int) -> np.ndarray:
    """Pose of a prop on the pavement, its -y towards the road."""
    x, y, heading = route.x[0], route.y[0], route.heading[0] + (0 if side > 0 else np.pi)
    pose = stand(Hill(bend=0, slope=0), x, y, heading)
    pose[2, 3] = street.hill.height(x) + street.kerb
    return pose


def _houses(rng: np.random.Generator, street: Street, s: np.ndarray, style: str) -> list[Prop]:
    """Houses, hedges and garden trees along the street and its side street."""
    end = s[-1] + 190
    rows = [
        (street.path, 1, street.left, s[0] - 12, end, False),
        (street.path, -1, street.right, s[0] - 12, end, False),
    ]
    if street.junction_s is not None:
        x, y, heading = (float(a) for a in street.path.pose(np.array(street.junction_s)))
        for turn in (np.pi / 2, -np.pi / 2):
            side_path = Path.build(x, y, heading + turn, [(1.0, 0.0)])
            first = (street.left if turn > 0 else street.right) + street.pavement + 3
            rows += [(side_path, side, street.junction_half, first, 75.0, True) for side in (1, -1)]
    near_s = np.arange(s[0] - 20, end, 2.0)
    clear = np.stack(street.path.pose(near_s)[:2], -1)
    blocks = Footprints(1)
    props: list[Prop] = []
    for path, side, half, begin, stop, side_street in rows:
        setback = half + street.pavement + (0.0 if style == "city" else rng.uniform(1.5, 5.0))
        at = begin
        while at < stop:
            kind = style if style != "mixed" else str(rng.choice(["city", "suburb"]))
            length, depth = rng.uniform(7, 20) if kind == "city" else rng.uniform(7, 13), rng.uniform(8, 13)
            middle = at + length / 2
            at += length + (
                rng.uniform(0.0, 0.6) if kind == "city" and rng.random() < 0.85 else rng.uniform(2, 9)
            )
            blocked = (not side_street and street.junction_s is not None
                       and abs(middle - street.junction_s) < length / 2 + street.junction_half + street.pavement)  # fmt: skip
            if blocked:
                continue
            front = setback + rng.uniform(0, 0.5)
            centre = Route.along(path, np.array([middle]), side * (front + depth / 2))
            keep_off = max(street.left, street.right) + 1.2 if side_street else half + street.pavement - 0.4
            if _on_road(clear, centre, length, depth, keep_off):
                continue
            if not blocks.admit(centre, length, depth, margin=-0.6):
                continue
            wall = Route.along(path, np.array([middle]), side * front)
            pose = _upright(street, wall, side)
            pose[2, 3] = min(pose[2, 3], float(street.hill.height(centre.x[0])) + street.kerb)
            props.append(Prop(solids=draw_house(rng, length, depth, kind), pose=pose))
            if kind == "suburb" and not side_street:
                props += _garden(rng, street, path, side, half + street.pavement, front, middle, length)
    return props


def _garden(
    rng, street: Street, path: Path, side: int, low: float, front: float, middle: float, length: float
) -> list[Prop]:
    props = []
    if front - low > 1.4 and rng.random() < 0.6:
        edge = Route.along(path, np.array([middle]), side * (low + 0.1))
        props.append(
            Prop(
                solids=draw_frontage(rng, length * rng.uniform(0.5, 0.95)), pose=_upright(street, edge, side)
            )
        )
    if rng.random() < 0.5:
        spot = Route.along(path, np.array([middle + length / 2 + 1.5]), side * (front + rng.uniform(-0.3, 4)))
        props.append(Prop(solids=draw_tree(rng), pose=_upright(street, spot, side)))
    return props


def _on_road(clear: np.ndarray, centre: Route, length: float, depth: float, margin: float) -> bool:
    """Whether a house would stand within margin of the street's centre line."""
    c, sn = np.cos(centre.heading[0]), np.sin(centre.heading[0])
    delta = clear - np.array([centre.x[0], centre.y[0]])
    u, v = np.abs(delta @ np.array([c, sn])), np.abs(delta @ np.array([-sn, c]))
    return bool(np.any((u < length / 2 + margin) & (v < depth / 2 + margin)))


def _ground(rng: np.random.Generator) -> Ground:
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


def _light(rng: np.random.Generator) -> Light:
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
