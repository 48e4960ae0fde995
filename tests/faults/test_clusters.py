"""Real clusters whose workers, scheduler or driver are killed, join, retire: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.assembly import Layout
from pipeline.build import BuildConfig
from pipeline.clip import FramesConfig
from pipeline.detectors import DetectorConfig
from pipeline.errors import BuildError
from pipeline.evidence_build import EvidenceBuild
from pipeline.flow import FlowConfig
from pipeline.graph import Failure, GraphConfig, Task, _Cluster, open_graph
from pipeline.plan import PlanConfig, plan_files
from pipeline.progress import Progress
from pipeline.sources.clip import Clip
from pipeline.window import NOT_YET
from pipeline.worker import PieceJob, run_piece
from tests.builds import SIZE, build, contents, run
from tests.conftest import ROOT
from tests.faults import clusters
from tests.faults.clusters import Cluster, events, naps, run_all, wait_until
from tests.faults.table import Fault
from tests.pipeline import poison


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.stop()


@pytest.mark.fault(Fault.NO_GPU)
def test_a_cluster_gives_the_same_bytes_and_lacking_gpus_are_an_error_in_time(
    streets: Path, reference: Path, tmp_path: Path, cluster: Cluster
) -> None:
    cluster.add()
    cluster.add()
    build(streets, tmp_path / "set", "--scheduler", cluster.address, workers=None)
    assert contents(tmp_path / "set") == contents(reference)
    options = ("--device", "cuda", "--scheduler", cluster.address, "--worker-timeout-s", "10")
    done = run("build", streets, tmp_path / "gpu", *SIZE, *options, "--quiet", workers=None)
    assert done.returncode == 1
    assert "none with the resource GPU" in done.stderr


@pytest.mark.fault(Fault.CLUSTER)
def test_no_scheduler_is_an_error_in_time(streets: Path, tmp_path: Path) -> None:
    options = ("--scheduler", "tcp://127.0.0.1:9", "--worker-timeout-s", "3")
    done = run("build", streets, tmp_path / "set", *SIZE, *options, "--quiet", workers=None)
    assert done.returncode == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in done.stderr


@pytest.mark.fault(Fault.CLUSTER)
def test_workers_that_join_are_used_and_more_tasks_than_workers_never_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add()
    tasks = naps(tmp_path, 200, 0.1)
    handed_out = 0

    def next_task() -> Task | None:
        nonlocal handed_out
        together = len({process for _, process in events(tmp_path)}) >= 3
        if together and most_under_way >= 3:
            return None  # seen what was to be seen
        handed_out += 1
        return tasks.pop() if tasks else None

    done = most_under_way = 0
    with open_graph(cluster.config()) as graph:
        for _task, result in graph.run(next_task):
            assert not isinstance(result, Failure), result
            most_under_way = max(most_under_way, handed_out - done)
            done += 1
            if done == 3:
                assert most_under_way == 1  # one worker, one task
                cluster.add()
                cluster.add()
    assert most_under_way == 3
    assert tasks, "the workers that joined were never used"


@pytest.mark.fault(Fault.CLUSTER)
@pytest.mark.parametrize("moment", ["at work", "handing over"])
def test_all_workers_killed_then_new_ones_join_and_the_work_ends(
    cluster: Cluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    victims = [cluster.add(), cluster.add()]
    results = []

    def strike() -> None:
        for victim in victims:
            cluster.kill(victim)
        assert not cluster.workers
        threading.Timer(4, cluster.add).start()

    def struck_result_of(graph: Any, future: Any) -> Any:
        if len(results) == 4 and cluster.workers == victims:
            strike()
        return result_of(graph, future)

    result_of = _Cluster.result_of
    if moment == "handing over":
        monkeypatch.setattr(_Cluster, "result_of", struck_result_of)

    def strike_at_work() -> None:
        wait_until(lambda: 4 <= len(events(tmp_path, "end")) < len(events(tmp_path)))
        strike()

    with open_graph(cluster.config()) as graph:
        if moment == "at work":
            threading.Thread(target=strike_at_work).start()
        for _, result in run_all(graph, naps(tmp_path, 12)):
            results.append(result)
    assert sorted(int(name) for name, _ in results) == list(range(12))
    begun = [name for name, _ in events(tmp_path)]
    assert len(begun) > len(set(begun))  # what was under way was done again
    lines = capsys.readouterr().err.splitlines()
    assert "has no workers any more; waiting 3600 s for new ones" in lines[0]
    assert "has workers again" in lines[1]


@pytest.mark.fault(Fault.CLUSTER)
def test_a_result_that_takes_long_to_travel_arrives(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.graph.POLL_S", 1e-4)  # far too short for it
    cluster.add()
    with open_graph(cluster.config()) as graph:
        ((_, result),) = run_all(graph, [Task(function=bytes, argument=1 << 26, key="large")])
    assert result == bytes(1 << 26)


class Broken:
    """A future whose result cannot be fetched: its connection broke, not its task."""

    key, status = "key", "finished"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self, timeout: float) -> None:
        raise self.error


@pytest.mark.fault(Fault.CLUSTER)
def test_a_connection_that_breaks_under_a_result_is_no_failure_of_the_task(cluster: Cluster) -> None:
    from distributed.comm import CommClosedError

    with cluster.client() as client:
        seen = _Cluster(client, cluster.config(), None)
        late = UnboundLocalError(
            "result"
        )  # of distributed.utils.sync, where a timeout comes at the wrong time
        for error in (CommClosedError("in <TCP (closed)>: Stream is closed"), TimeoutError(), late):
            assert seen.result_of(Broken(error)) is NOT_YET
            failed = Broken(error)
            failed.status = "error"  # the task's own
            assert isinstance(seen.result_of(failed), Failure)
        assert isinstance(seen.result_of(Broken(ValueError("cannot be read here"))), Failure)


@pytest.mark.fault(Fault.CLUSTER)
def test_workers_that_never_come_back_end_the_run_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    victim = cluster.add()
    with (
        pytest.raises(BuildError, match="has had no workers for 3 s; finished work is kept") as caught,
        open_graph(cluster.config(lost_workers_timeout_s=3)) as graph,
    ):
        for number, _ in enumerate(run_all(graph, naps(tmp_path, 6))):
            if number == 1:
                cluster.kill(victim)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(Fault.CLUSTER)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_scheduler_that_is_gone_ends_the_run_in_bounded_time_and_a_new_one_goes_on(
    cluster: Cluster, tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.graph.ANSWER_TIMEOUT_S", 5)  # a stopped one keeps its connections
    cluster.add()
    done = []
    begin = time.monotonic()
    with (
        pytest.raises(BuildError, match=r"scheduler at tcp://.* is gone") as caught,
        open_graph(cluster.config()) as graph,
    ):
        for task, _ in run_all(graph, naps(tmp_path, 8)):
            done.append(task.key)
            if len(done) == 2:
                os.killpg(cluster.scheduler.pid, how)
    assert time.monotonic() - begin < clusters.PATIENCE_S
    assert "\n" not in str(caught.value)
    cluster.stop()

    again = Cluster(tmp_path / "cluster")
    try:
        again.add()
        left = [task for task in naps(tmp_path, 8) if task.key not in done]
        with open_graph(again.config()) as graph:
            done += [task.key for task, _ in run_all(graph, left)]
    finally:
        again.stop()
    assert sorted(done) == sorted(task.key for task in naps(tmp_path, 8))


@pytest.mark.fault(Fault.CLUSTER)
@pytest.mark.fault(Fault.TASK_TWICE)
def test_a_retired_worker_hands_its_task_on(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add()
    tasks = [
        Task(function=clusters.nap_until_told, argument=(str(tmp_path), f"{i}"), key=f"t-{i}")
        for i in range(2)
    ]

    def retire() -> None:
        with cluster.client() as client:
            wait_until(lambda: events(tmp_path))
            (address,) = client.scheduler_info(n_workers=-1)["workers"]
            cluster.add()
            wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)
            client.retire_workers([address])  # as its lifetime does
            wait_until(lambda: len({process for name, process in events(tmp_path) if name == "0"}) == 2)
            (tmp_path / "go").touch()

    other = threading.Thread(target=retire)
    with open_graph(cluster.config()) as graph:
        other.start()
        results = [result for _, result in run_all(graph, tasks)]
    other.join()
    assert sorted(name for name, _ in results) == ["0", "1"]
    first, second = [process for name, process in events(tmp_path) if name == "0"]
    assert dict(results)["0"] == second != first  # it was under way twice, and counted once


@pytest.mark.fault(Fault.CLUSTER)
def test_unlucky_deaths_are_forgiven_and_a_poisonous_task_is_found_with_its_group(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Four kills under one task are what the scheduler takes for its guilt."""
    cluster.add(nanny=True)
    innocent = Task(
        function=clusters.nap_until_told, argument=(str(tmp_path), "innocent"), key="i", group="a"
    )
    brother = Task(function=clusters.nap, argument=(str(tmp_path), "brother", 0.1), key="b", group="a")
    poison = Task(function=clusters.die, argument=(str(tmp_path), "poison"), key="p", group="c")
    sister = Task(function=clusters.nap, argument=(str(tmp_path), "sister", 0.1), key="s", group="c")
    fine = Task(function=clusters.nap, argument=(str(tmp_path), "fine", 0.1), key="f")

    def tries(name: str) -> list[int]:
        return [process for each, process in events(tmp_path) if each == name]

    def kill_the_innocents_workers() -> None:
        for number in range(4):
            wait_until(lambda number=number: len(tries("innocent")) > number)
            os.kill(tries("innocent")[-1], signal.SIGKILL)  # its nanny starts another
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_the_innocents_workers)
    killer.start()
    with open_graph(cluster.config()) as graph:
        results = {
            task.key: result for task, result in run_all(graph, [innocent, brother, poison, sister, fine])
        }
    killer.join()
    assert len(tries("innocent")) == 5  # four deaths, then its trial
    assert results["i"][0] == "innocent"
    assert results["b"][0] == "brother"
    assert results["f"][0] == "fine"
    assert len(tries("poison")) == 8  # four deaths, and four in its trial
    assert isinstance(results["p"], Failure)
    assert results["p"].killed
    assert results["s"] is results["p"]  # never run: it belongs to what kills workers
    assert not tries("sister")


@pytest.mark.fault(Fault.KILLED)
def test_what_a_killed_driver_left_on_the_scheduler_does_not_confuse_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add()
    line = [sys.executable, "-m", "tests.faults.clusters", cluster.address, str(tmp_path), "9"]
    driver = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline()
    wait_until(lambda: len(events(tmp_path)) > len(events(tmp_path, "end")), alive=driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    begun = events(tmp_path)
    with open_graph(cluster.config()) as graph:  # tasks of the same names
        results = {task.key: result for task, result in run_all(graph, naps(tmp_path, 9, 0.05))}
    assert {name for name, _ in results.values()} == {str(i) for i in range(9)}
    assert len(events(tmp_path)) == len(begun) + 9  # each was done here, none was taken from the dead


@pytest.mark.fault(Fault.CLUSTER)
def test_two_drivers_on_one_scheduler_do_not_take_each_others_results(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.add()
    cluster.add()
    found: dict[int, list[int]] = {}

    def drive(number: int) -> None:
        tasks = [
            Task(function=clusters.identity, argument=100 * number + i, key=f"piece-{i}") for i in range(40)
        ]
        with open_graph(cluster.config()) as graph:
            found[number] = sorted(result for _, result in run_all(graph, tasks))

    drivers = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert found == {number: [100 * number + i for i in range(40)] for number in range(2)}


@pytest.mark.fault(Fault.CLUSTER)
def test_a_worker_with_other_code_or_other_files_is_refused_in_one_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.write_text("a lease")
    other = tmp_path / "other"
    shutil.copytree(
        ROOT / "pipeline", other / "pipeline", ignore=shutil.ignore_patterns("*.pt", "__pycache__")
    )
    with open(other / "pipeline" / "classes.py", "a") as file:
        file.write("# edited\n")
    none = tmp_path / "none"
    none.mkdir()
    (none / "pipeline.py").touch()  # hides the installed package

    with open_graph(_with(cluster, {}), shared=[shared, tmp_path]) as graph:  # alike
        assert [result for _, result in run_all(graph, [_one()])] == [1]
        shared.write_text("on another disk")  # a worker that joins now sees something else
        late = cluster.add()
        cluster.kill(cluster.workers[0])
        (failure,) = [result for _, result in run_all(graph, [_one()])]
        assert isinstance(failure.error, BuildError)
        assert f"does not see {shared} as it is" in str(failure.error)
        shared.write_text("a lease")
        cluster.kill(late)
    for folder, message in ((other, "has instance-motion code"), (none, "cannot run our code")):
        with (
            pytest.raises(
                BuildError, match=rf"^worker tcp://\S+ of \S+ {message}.* same environment"
            ) as caught,
            open_graph(_with(cluster, {"PYTHONPATH": str(folder)})),
        ):
            pass
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(
            BuildError, match="does not see .*nowhere as it is; a cluster needs a shared file system"
        ),
        open_graph(_with(cluster, {}, worker_timeout_s=10), shared=[_Elsewhere(tmp_path / "nowhere")]),
    ):
        pass


class _Elsewhere(type(Path())):  # type: ignore[misc]
    """A folder that only this process sees."""

    def is_dir(self, **_: object) -> bool:
        return True


def _one() -> Task:
    return Task(function=clusters.identity, argument=1, key="one")


def _with(cluster: Cluster, environment: dict[str, str], **changes: object):  # type: ignore[no-untyped-def]
    """The cluster, with one fresh worker."""
    for worker in list(cluster.workers):
        cluster.kill(worker)
    cluster.add(environment=environment)
    return cluster.config(**changes)


@pytest.mark.fault(Fault.CLUSTER)
def test_tasks_for_gpus_and_others_do_not_keep_each_other_waiting(cluster: Cluster, tmp_path: Path) -> None:
    """The resource GPU is a number that a worker states; no GPU is touched."""
    cluster.add("--resources", "GPU=1")
    cluster.add()

    def task(name: str, needs_gpu: bool) -> Task:
        return Task(function=clusters.nap, argument=(str(tmp_path), name, 0.3), key=name, needs_gpu=needs_gpu)

    tasks = [*(task(f"gpu-{i}", True) for i in range(6)), *(task(f"cpu-{i}", False) for i in range(3))]
    with open_graph(cluster.config(), needs_gpu=True) as graph:
        wait_until(lambda: graph_threads(cluster) == 2)
        ended = [done.key for done, _ in run_all(graph, tasks)]
        assert sorted(ended) == sorted(each.key for each in tasks)
        assert clusters.most_at_once(tmp_path, "gpu") == 1
        assert ended.index("cpu-0") < ended.index("gpu-5")  # passed those that waited for the GPU

        # The GPU's worker dies while the other stays: its work waits for the next one.
        cluster.kill(cluster.workers[0])
        threading.Timer(2, cluster.add, ("--resources", "GPU=1")).start()
        assert [done.key for done, _ in run_all(graph, [task("gpu-late", True)])] == ["gpu-late"]


def graph_threads(cluster: Cluster) -> int:
    with cluster.client() as client:
        return sum(client.nthreads().values())


@pytest.mark.fault(Fault.TASK_TWICE)
def test_one_piece_made_by_two_workers_at_once_has_the_same_bytes(
    cluster: Cluster, tmp_path: Path, empty_masks: Path
) -> None:
    clip = clusters.slow_clip("a", tmp_path, frames=4, pause_s=0.5)
    job, layout = piece_job(tmp_path / "twice", clip, empty_masks)
    cluster.add()
    cluster.add()
    tasks = [Task(function=run_piece, argument=job, key=f"same-{i}") for i in range(2)]
    with open_graph(cluster.config()) as graph:
        wait_until(lambda: graph_threads(cluster) == 2)
        reports = [result for _, result in run_all(graph, tasks)]
    assert not any(isinstance(report, Failure) for report in reports), reports
    assert clusters.most_at_once(tmp_path) == 2  # both were at it at the same time
    assert len({process for _, process in events(tmp_path)}) == 2

    once, layout_once = piece_job(tmp_path / "once", clip, empty_masks)
    run_piece(once)
    for path, other in zip(layout.piece_paths(job.piece), layout_once.piece_paths(once.piece), strict=True):
        assert path.read_bytes() == other.read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def piece_job(out: Path, clip: Clip, masks: Path) -> tuple[PieceJob, Layout]:
    layout = Layout(folder=out, set_id="e" * 64, frames=FramesConfig(size=poison.SIZE), flow=FlowConfig())
    (piece,) = plan_files([len(clip)], PlanConfig())[0].pieces(len(clip))
    detector = DetectorConfig(detector=f"masks:{masks}")
    return PieceJob(layout=layout, piece=piece, clip=clip.part(0, len(clip)), detector=detector), layout


@pytest.fixture
def empty_masks(tmp_path: Path) -> Path:
    """A detector that costs nothing: given masks, none."""
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}))
    return path


@pytest.mark.fault(Fault.KILLED)
@pytest.mark.fault(Fault.CLUSTER)
@pytest.mark.parametrize(
    ("rounds", "seed"), [(4, 1), *(pytest.param(15, seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
def test_workers_killed_at_random_round_after_round_and_the_set_is_the_same(
    cluster: Cluster, tmp_path: Path, empty_masks: Path, rounds: int, seed: int
) -> None:
    random_ = random.Random(seed)
    clips = [clusters.slow_clip(f"c{i}", tmp_path, frames=3 * rounds, pause_s=0.4) for i in range(2)]
    survived = 0

    def kill_round_after_round() -> None:
        nonlocal survived
        for number in range(rounds):
            wait_until(lambda number=number: len(events(tmp_path, "end")) >= 2 * number)  # it goes on
            wait_until(lambda: clusters.under_way(tmp_path) & {each.pid for each in cluster.workers})
            time.sleep(random_.uniform(0, 0.4))
            busy = [each for each in cluster.workers if each.pid in clusters.under_way(tmp_path)]
            all_of_them = random_.random() < 0.3
            for victim in list(cluster.workers) if all_of_them else busy[:1]:
                cluster.kill(victim)
            time.sleep(random_.uniform(0, 0.5))
            while len(cluster.workers) < 2:
                cluster.add()
            survived += 1

    for _ in range(2):
        cluster.add()
    killer = threading.Thread(target=kill_round_after_round)
    killer.start()
    build_evidence(tmp_path / "killed", clips, empty_masks, cluster.config())
    killer.join()
    assert survived == rounds
    cut_off = len(events(tmp_path)) - len(events(tmp_path, "end"))
    assert cut_off >= rounds / 2  # a kill that was drawn to come late may miss
    print(f"rounds survived: {survived}, pieces cut off: {cut_off}")

    quick = [clusters.slow_clip(clip.name, tmp_path, len(clip), 0) for clip in clips]
    build_evidence(tmp_path / "calm", quick, empty_masks, GraphConfig(workers=0))
    assert contents(tmp_path / "killed", "frames", "evidence") == contents(
        tmp_path / "calm", "frames", "evidence"
    )


def build_evidence(out: Path, clips: list[Clip], masks: Path, graph: GraphConfig) -> None:
    """Frames and evidence of all clips, in pieces of two frames."""
    config = BuildConfig(
        frames=FramesConfig(size=poison.SIZE),
        detector=DetectorConfig(detector=f"masks:{masks}"),
        plan=PlanConfig(frames_per_piece=2, frames_per_file=8),
    )
    layout = Layout(folder=out, set_id="e" * 64, frames=config.frames, flow=config.flow)
    work = EvidenceBuild(
        layout, clips, plan_files([len(clip) for clip in clips], config.plan), config, needs_gpu=False
    )
    with open_graph(graph) as opened, Progress("t", work.frames_total, quiet=True) as bar:
        assert not work.run(opened, bar).failed


@pytest.mark.fault(Fault.MANY_TASKS)
def test_the_scheduler_never_holds_more_tasks_than_there_are_threads(cluster: Cluster) -> None:
    cluster.add()
    tasks = (Task(function=clusters.identity, argument=i, key=f"tiny-{i}") for i in range(400))
    with cluster.client() as client:

        def held() -> int:
            return client.run_on_scheduler(clusters.tasks_held)

        most = 0
        with open_graph(cluster.config()) as graph:
            for seen, (_, result) in enumerate(graph.run(lambda: next(tasks, None))):
                assert result == seen
                if seen % 20 == 0:
                    most = max(most, held())
        assert seen == 399
        assert most <= 3  # one thread: one task, and those that are being forgotten
        futures = client.map(clusters.identity, range(400), pure=False)  # the trigger: all at once
        futures[-1].result(timeout=clusters.PATIENCE_S)
        assert held() >= 400


@pytest.mark.slow
@pytest.mark.fault(Fault.MANY_TASKS)
def test_the_schedulers_memory_stays_flat_over_many_tasks(cluster: Cluster) -> None:
    """12,000 tasks rather than 100,000: the difference is clear, in minutes.

    Two workers, as the scheduler is never idle then: dask keeps 2 kB for each time that it was.
    """
    cluster.add()
    cluster.add()
    count, full_logs = 10_000, 2000  # tasks after which the scheduler's own logs, of fixed length, are full
    tasks = (Task(function=clusters.identity, argument=i, key=f"tiny-{i}") for i in range(full_logs + count))
    with open_graph(cluster.config()) as graph:
        wait_until(lambda: graph_threads(cluster) == 2)
        before = largest = 0
        for seen, _ in enumerate(graph.run(lambda: next(tasks, None)), start=1):
            if seen == full_logs:
                before = resident_kb(cluster.scheduler.pid)
            if seen % 100 == 0:
                largest = max(largest, resident_kb(cluster.scheduler.pid))
        assert seen == full_logs + count
    windowed = largest - before
    with cluster.client() as client:
        before = resident_kb(cluster.scheduler.pid)
        futures = client.map(clusters.identity, range(count), pure=False)
        futures[-1].result(timeout=600)
        at_once = resident_kb(cluster.scheduler.pid) - before
    print(f"{count} tasks: scheduler +{windowed / 1024:.1f} MB windowed, +{at_once / 1024:.1f} MB at once")
    assert at_once > 2 * count  # kB: the trigger fires
    assert windowed < at_once / 2


def resident_kb(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1))  # type: ignore[union-attr]
