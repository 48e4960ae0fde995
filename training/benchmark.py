"""What the trainer's work costs, beside its plain reference: `python -m training.benchmark`.

Every case runs in a process of its own, once to see how far memory rises above its inputs and
then a few times for the median. `released` is the authors' code, measured once on 2 idle CPU threads
at 832x256, batch 4, 3 instances. Set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait
triple the times. On a busy machine look at CPU seconds: divided by the threads they are about
what the clock would show on an idle one.

To measure something else add a `Case`: a function from the setting to the work, inputs made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
from torch import Tensor

from training.geometry import reference, se3, warp

MIB = 1 << 20


@dataclass(frozen=True)
class Setting:
    """What to measure, and on what."""

    only: str = ""
    """Cases whose name contains this; all if empty."""
    runs: int = 5
    """Timed runs of each; the median counts."""
    threads: int = 2
    """CPU threads."""
    device: str = "cpu"
    """Where the tensors live."""
    batch: int = 4
    size: tuple[int, int] = (832, 256)
    """Width and height."""
    instances: int = 3
    """A frame."""
    with_reference: bool = True
    """Measure the plain versions too, which need several GiB at the default size."""


Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row.

    name:      What is done.
    released:  Seconds and MiB of the released code, or nothing comparable.
    ours:      Makes the inputs and returns the work on them.
    reference: The same done plainly, if there is such a version.
    """

    name: str
    released: tuple[float, float | None] | None
    ours: Callable[[Setting], Work]
    reference: Callable[[Setting], Work] | None = None


@dataclass(frozen=True)
class Cost:
    """Medians of wall clock and of CPU time over all threads, and memory above the inputs."""

    wall_s: float
    cpu_s: float | None
    memory_mib: float | None


def forward_warp_work(
    setting: Setting, forward_warp: Callable[..., warp.ForwardWarp], backward: bool
) -> Work:
    """Six channels, an image and three masks, as the released code warps them; alpha 3."""
    street = _street(setting, channels=6)
    depth, T = street.depth_s.requires_grad_(backward), street.motions[:, 0].clone().requires_grad_(backward)

    def work() -> None:
        view = forward_warp(street.image, depth, street.K, T, None, 3)
        if backward:
            torch.autograd.grad(view.image.sum() + view.depth.sum(), (depth, T))

    return work


def inverse_warp_work(
    setting: Setting, inverse_warp: Callable[..., warp.InverseWarp], backward: bool
) -> Work:
    """An image and its depth, the background and every instance by its own motion."""
    street = _street(setting, channels=3)
    inputs = [x.requires_grad_(backward) for x in (street.depth_s, street.depth_t, street.motions)]

    def work() -> None:
        view = inverse_warp(street.image, *inputs[:2], street.K, inputs[2], street.regions)
        if backward:
            total = view.image.sum() + view.sampled_depth.sum() + view.moved_depth.sum()
            torch.autograd.grad(total, inputs)

    return work


CASES = (
    Case(
        "forward warp",
        (0.78, 497),
        lambda setting: forward_warp_work(setting, warp.forward_warp, False),
        lambda setting: forward_warp_work(setting, reference.forward_warp, False),
    ),
    Case(
        "forward warp with backward",
        (1.11, 887),
        lambda setting: forward_warp_work(setting, warp.forward_warp, True),
        lambda setting: forward_warp_work(setting, reference.forward_warp, True),
    ),
    Case(
        "inverse warp",
        (0.16, None),
        lambda setting: inverse_warp_work(setting, warp.inverse_warp, False),
        lambda setting: inverse_warp_work(setting, reference.inverse_warp, False),
    ),
    Case(
        "inverse warp with backward",
        (0.29, 304),
        lambda setting: inverse_warp_work(setting, warp.inverse_warp, True),
        lambda setting: inverse_warp_work(setting, reference.inverse_warp, True),
    ),
)


def measure(name: str, version: Literal["ours", "reference"], setting: Setting) -> Cost:
    """The cost of a case, in this process: call it in a fresh one."""
    case = next(case for case in CASES if case.name == name)
    make = getattr(case, version)
    torch.set_num_threads(setting.threads)
    make(Setting(batch=1, size=(64, 32), device=setting.device))()  # loads what is loaded lazily
    work = make(setting)
    memory_mib = _memory_of(work, setting.device)
    times = []
    for _ in range(setting.runs):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        _wait_for(setting.device)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    walls, cpus = zip(*times, strict=True)
    return Cost(median(walls), median(cpus), memory_mib)


def main(setting: Setting) -> None:
    """Print the table."""
    print(
        f"{setting.size[0]}x{setting.size[1]}, batch {setting.batch}, {setting.instances} instances, "
        f"{setting.device}, {setting.threads} threads, median of {setting.runs}; "
        f"load before the start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(
        f"{'case':28} {'version':10} {'wall s':>8} {'CPU s':>8} {'MiB':>8}"
        "   ours is: by wall  by CPU  of the memory"
    )
    for case in CASES:
        if setting.only not in case.name:
            continue
        ours = _measure_apart(case.name, "ours", setting)
        rows = [("ours", ours)]
        if case.reference is not None and setting.with_reference:
            rows.append(("reference", _measure_apart(case.name, "reference", setting)))
        if case.released is not None and _as_released(setting):
            rows.append(("released", Cost(case.released[0], None, case.released[1])))
        for version, cost in rows:
            print(_row(case.name if version == "ours" else "", version, cost, ours), flush=True)


def _row(name: str, version: str, cost: Cost, ours: Cost) -> str:
    """A line of the table; the last columns compare with ours."""
    cpu = "-" if cost.cpu_s is None else f"{cost.cpu_s:.3f}"
    memory = "-" if cost.memory_mib is None else f"{cost.memory_mib:.0f}"
    line = f"{name:28} {version:10} {cost.wall_s:8.3f} {cpu:>8} {memory:>8}"
    if cost is ours:
        return line
    by_cpu = f"{cost.cpu_s / ours.cpu_s:.1f}x" if cost.cpu_s and ours.cpu_s else "-"
    share = f"{ours.memory_mib / cost.memory_mib:.2f}" if cost.memory_mib and ours.memory_mib else "-"
    return f"{line} {cost.wall_s / ours.wall_s:17.1f}x {by_cpu:>7} {share:>14}"


def _as_released(setting: Setting) -> bool:
    """Whether the released code was measured on the same work."""
    return (setting.size, setting.batch, setting.instances, setting.device) == ((832, 256), 4, 3, "cpu")


def _measure_apart(name: str, version: Literal["ours", "reference"], setting: Setting) -> Cost:
    """`measure` in a new process: no memory is left over from other cases."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, name, version, setting).result()


def _memory_of(work: Work, device: str) -> float | None:
    """MiB by which memory rises at most while working; None where the system does not say."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        work()
        return None
    forget.write_text("5")  # the high-water mark begins at what is resident now
    before = _resident_kib("VmRSS")
    work()
    return (_resident_kib("VmHWM") - before) / 1024


def _resident_kib(which: str) -> int:
    """A line of Linux' account of this process, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {which}")


def _wait_for(device: str) -> None:
    """A GPU is still at work when the call returns."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class _Street:
    """Inputs of the warps: a road, houses, and cars as boxes."""

    image: Tensor
    depth_s: Tensor
    depth_t: Tensor
    K: Tensor
    motions: Tensor
    regions: Tensor


def _street(setting: Setting, channels: int) -> _Street:
    """A scene whose pixels lie where a street's do, so that memory is read as in training."""
    (W, H), B, R = setting.size, setting.batch, setting.instances + 1
    generator = torch.Generator().manual_seed(0)
    u, v = torch.arange(W) / W, (torch.arange(H) / H)[:, None]
    road = 1.5 / (v - 0.45).clamp(min=0.02)
    houses = 8 / ((u - 0.5).abs() + 0.05)
    depth = torch.minimum(road, houses).clamp(1, 80).expand(B, 1, H, W).clone()
    regions = torch.zeros(B, H, W, dtype=torch.int64)
    for car in range(1, R):
        left, top = round(W * car / (R + 1)), round(0.45 * H)
        box = (slice(None), slice(top, top + H // 4), slice(left, left + W // 10))
        regions[box] = car
        depth[:, 0][box] = 6 + 3 * car
    motions = torch.tensor([0.01, 0.0, -0.6, 0.002, 0.01, 0.001]).expand(B, R, 6).clone()
    motions[:, 1:, 2] += 0.5
    K = torch.tensor([[0.6 * W, 0, (W - 1) / 2], [0, 0.6 * W, (H - 1) / 2], [0, 0, 1]]).expand(B, 3, 3)
    noise = 1 + 0.01 * torch.rand(B, 1, H, W, generator=generator)
    inputs = {
        "image": torch.rand(B, channels, H, W, generator=generator),
        "depth_s": depth * noise,
        "depth_t": depth * noise.flip(3),
        "K": K.clone(),
        "motions": se3.exp(motions),
        "regions": regions,
    }
    return _Street(**{name: value.to(setting.device) for name, value in inputs.items()})


if __name__ == "__main__":
    main(tyro.cli(Setting, prog="python -m training.benchmark", description=__doc__))
