"""The actors of a scene: traffic, parked cars and people, none of which ever touch.

Right-hand traffic: the camera's direction drives at d < 0.
"""

from __future__ import annotations

import numpy as np

from pipeline.streetworld.roads import Hill, Path, stand
from pipeline.streetworld.scenery import draw_person
from pipeline.streetworld.solids import Solid
from pipeline.streetworld.traffic import Route, distance, draw_speed
from pipeline.streetworld.vehicles import draw_vehicle
from pipeline.streetworld.world import AHEAD_M, Actor


class Cast:
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
        first = {
            "following": self.follow,
            "oncoming": self.oncoming,
            "crossing": self.crossing,
            "turning": self.turning,
            "pedestrians": self.crosser,
            "overtaking": self.same_way,
            "standing": self.crosser,
        }.get(scenario)
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
        path = Path.build(
            x + c * start + sn * half,
            y + sn * start - c * half,
            arm,
            [(straight, 0.0), (arc, (1 if left else -1) / radius), (40.0, 0.0)],
        )
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
        self.actors.append(
            Actor(
                id=len(self.actors) + 1,
                label=label,
                kind=kind,
                size=size,
                solids=solids,
                poses=poses,
                moving=moving,
            )
        )
