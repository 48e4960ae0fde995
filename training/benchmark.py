"""What the trainer's work costs, beside its plain reference: `python -m training.benchmark`.

Every case runs in a process of its own, once to see how far memory rises above its inputs and
then a few times for the median. `released` is the authors' code, measured once on 2 idle CPU threads
at 832x256, batch 4, 3 instances. Set OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait
triple the times. On a busy machine look at CPU seconds: divided by the threads they are about
what the clock would show on an idle one.

To measure something else add a `Case` to training/benchmark_cases.py. A training sample is
measured by `python -m training.data_benchmark SHARDS`.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro

from training.benchmark_cases import CASES, Setting, Work

MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Medians of wall clock and of CPU time over all threads, and memory above the inputs."""

    wall_s: float
    cpu_s: float | None
    memory_mib: float | None


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
        f"{'case':32} {'version':10} {'wall s':>8} {'CPU s':>8} {'MiB':>8}"
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
    line = f"{name:32} {version:10} {cost.wall_s:8.3f} {cpu:>8} {memory:>8}"
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


if __name__ == "__main__":
    main(tyro.cli(Setting, prog="python -m training.benchmark", description=__doc__))
