"""Trainings by the real command that are killed, stopped, crowded: the same bits as if nothing had happened."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.configuration import to_dict
from tests.faults.forks import At, Forks, Running, forks
from tests.faults.table import Fault
from tests.training.runs import checkpoint_of, difference_of_runs, settings
from training import checkpoint
from training.config import TrainConfig
from training.record import read_metrics

__all__ = ["forks"]


def short(shards: Path, workers: int = 0) -> TrainConfig:
    """Eight steps, of which the fifth ends an epoch; the first instances at step four."""
    return settings(shards, data_workers=workers, checkpoint_every=2)


def start(
    forks: Forks,
    config: TrainConfig,
    out: Path,
    kill: At | None = None,
    environment: dict[str, str] | None = None,
    limits: dict[str, int] | None = None,
) -> Running:
    """`instance-motion train`; it goes on with the run in `out` if there is a checkpoint."""
    text = yaml.safe_dump(to_dict(config))
    recipe = out.with_name(f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml")
    if not recipe.exists():  # another one may be reading it
        recipe.write_text(text)
    words = ["train", "--recipe", recipe, "--out", out, "--quiet"]
    words += ["--resume"] if (out / "last.pt").exists() else []
    return forks.start(words, kill=kill, environment=environment, limits=limits)


@pytest.fixture(scope="module")
def whole(street_shards: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    running = start(forks, short(street_shards), folder / "run")
    assert running.wait() == 0, running.said
    return folder / "run"


def gone(pids: list[int], timeout_s: float = 60) -> None:
    """Wait until processes have ended by themselves."""
    end = time.monotonic() + timeout_s
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and _cmdline(pid)]:
        assert time.monotonic() < end, f"{alive} are still there"
        time.sleep(0.05)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()  # empty of a dead process that nobody asked for
    except OSError:
        return b""


def assert_curves_are_whole(out: Path) -> None:
    """Every step once, as if one process had drawn them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/photometric")] == list(range(8))
    assert [event.step for event in events.Scalars("validation/photometric")] == [4, 8]


# ---------------------------------------------------------------------------- kill -9


def rounds(rng: random.Random) -> list[At]:
    """One run's kills, in this order; two updates lie between checkpoints."""
    return [
        At(function="_Training._update", number=2),  # before the first checkpoint
        At(file="last.pt", cut=rng.random()),  # the first one, half written
        At(function="_Training._validate", delay_s=rng.uniform(0.01, 0.1), victims="itself"),
        At(file="best.pt", cut=rng.random()),
        At(function="Sampler._deal", number=3),  # epoch, heights' probe, next epoch
        At(function="Record.scalars", number=2),
        At(file="last.pt", number=2, cut=rng.random()),
    ]


@pytest.mark.fault(Fault.TRAINING_KILLED)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_killed_round_after_round_ends_bit_for_bit(
    workers: int, street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards, workers)
    survived = []
    points = rounds(random.Random(workers))
    for point in points[1::2] + points[-1:] if workers == 1 else points:
        running = start(forks, config, out, point)
        assert running.wait() == -signal.SIGKILL, running.said
        assert running.killed_at is not None
        survived.append(running.killed_at)
        if (out / "last.pt").exists():
            assert checkpoint_of(out).progress.step % 2 == 0
    assert any(each.startswith("last.pt") and "100%" not in each for each in survived)
    assert list(out.glob(".last.pt.*.partial"))  # the last kill was in the middle of a file
    assert start(forks, config, out).wait() == 0
    print(f"{len(survived)} rounds survived with {workers} workers: {'; '.join(survived)}")

    assert difference_of_runs(out, whole) is None
    assert_curves_are_whole(out)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


@pytest.mark.slow
@pytest.mark.fault(Fault.TRAINING_KILLED)
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_run_killed_at_random_moments_until_it_gets_through_ends_bit_for_bit(
    workers: int, start_method: str, street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards, workers)
    config = replace(config, data=replace(config.data, start_method=start_method), checkpoint_every=1)  # type: ignore[arg-type]
    rng, survived = random.Random(17 * workers), 0
    while survived < 40:
        anywhere = At(delay_s=rng.uniform(0.2, 1.5), victims=rng.choice(["all", "itself"]))
        write = At(file=rng.choice(["last.pt", "best.pt", "metrics.jsonl", "config.yaml"]), cut=rng.random())
        running = start(forks, config, out, rng.choice([anywhere, write]))
        if running.wait() != -signal.SIGKILL:
            break  # it got through
        survived += 1
    assert start(forks, config, out).wait() == 0
    print(f"{survived} rounds survived with {workers} workers by {start_method}")
    assert survived >= 3
    assert difference_of_runs(out, whole, but=("data", "checkpoint_every")) is None


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_workers_of_a_killed_run_end_by_themselves_and_do_not_hold_it(
    street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards, 2)
    # Told of just before its end, when it has not been killed yet but its workers are known.
    running = start(forks, config, out, At(file="last.pt", number=2, victims="itself", delay_s=0.3))
    workers: list[int] = []
    while running.poll() is None:
        workers = running.children() or workers
        time.sleep(0.002)
    assert running.wait() == -signal.SIGKILL
    assert len(workers) == 2
    again = start(forks, config, out)  # at once, while they may still be there
    assert again.wait() == 0, again.said
    gone(workers)
    assert difference_of_runs(out, whole) is None


@pytest.mark.fault(Fault.TRAINING_KILLED)
@pytest.mark.parametrize(
    "at", ["_Training._update", pytest.param("_Training._validate", marks=pytest.mark.slow)]
)
def test_a_killed_data_worker_ends_the_run_in_one_line_and_shifts_nothing(
    at: str, street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards, 2)
    number = 4 if at == "_Training._update" else 1
    running = start(forks, config, out, At(function=at, number=number, victims="children"))
    assert running.wait(120) == 1, running.said
    assert running.killed_at == f"{at} (2 children)"
    assert running.error.startswith("a data worker ended: DataLoader worker")
    assert running.error.endswith("--resume goes on from the last checkpoint")
    assert start(forks, config, out).wait() == 0
    assert difference_of_runs(out, whole) is None


@pytest.mark.fault(Fault.TRAINING_KILLED)
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_in_one_line(
    victim: int, street_shards: Path, forks: Forks, tmp_path: Path
) -> None:
    """Without a launcher, which would end them all itself."""
    out, config = tmp_path / "run", short(street_shards)
    config = replace(config, data=replace(config.data, batch_size=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    both = []
    for rank in (0, 1):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        where |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        kill = At(function="_Training._update", number=4) if rank == victim else None
        both.append(start(forks, config, out, kill, where))
    assert both[victim].wait() == -signal.SIGKILL, both[victim].said
    other = both[1 - victim]
    assert other.wait(120) == 1, other.said
    assert other.error.startswith("another process of this training ended (")
    assert checkpoint_of(out).progress.step == 2


# ---------------------------------------------------------------------------- Ctrl-C, two trainings


@pytest.mark.fault(Fault.STOPPED)
def test_ctrl_c_at_any_point_loses_no_step(
    street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards, 1)
    for point in (
        At(function="Loader.__init__", signal=signal.SIGINT, victims="itself"),
        At(file="last.pt", signal=signal.SIGINT, victims="itself"),
        At(function="_Training._validate", signal=signal.SIGINT, victims="itself"),
        At(file="best.pt", signal=signal.SIGINT, victims="itself"),
    ):
        running = start(forks, config, out, point)
        code = running.wait()
        if point.file == "best.pt" and code == 0:
            break  # no better weights any more
        assert code == 130, running.said
        assert running.killed_at is not None
        step = checkpoint_of(out).progress.step
        assert f"stopped after step {step}; the same command with --resume goes on from there" in running.said
        assert "Traceback" not in running.said
    assert start(forks, config, out).wait() == 0
    assert difference_of_runs(out, whole) is None


@pytest.mark.fault(Fault.TWO_WRITERS)
def test_a_second_training_into_a_folder_learns_who_is_there(
    street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards)
    first = start(forks, config, out)
    try:
        while not (out / "metrics.jsonl").exists() and first.poll() is None:
            time.sleep(0.01)
        first.kill(signal.SIGSTOP)  # it holds the folder, however slow the second is to start
        before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
        second = start(forks, config, out)
        assert second.wait() == 1
        assert f"{out} is being written by instance-motion train, process {first.pid} on" in second.error
        assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    finally:
        first.kill(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert difference_of_runs(out, whole) is None
    assert not (out / ".lease").exists()


@pytest.mark.fault(Fault.TWO_WRITERS)
def test_of_trainings_started_at_once_one_trains(
    street_shards: Path, whole: Path, forks: Forks, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", short(street_shards)
    crowd = [start(forks, config, out) for _ in range(4)]
    codes = [each.wait() for each in crowd]
    assert sorted(codes) == [0, 1, 1, 1], [each.said for each in crowd]
    for running, code in zip(crowd, codes, strict=True):
        assert code == 0 or "is being written by" in running.error or "holds a run already" in running.error
    assert difference_of_runs(out, whole) is None
    assert len(read_metrics(out)) == 10
    assert checkpoint.load(out / "best.pt").progress.best_loss is not None
