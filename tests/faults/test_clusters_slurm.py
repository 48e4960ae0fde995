"""Workers that are batch jobs: a stand-in for Slurm that runs job scripts and kills them at their wall time."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dask
import pytest
import yaml

from pipeline.graph import GraphConfig
from tests.builds import contents
from tests.conftest import ROOT
from tests.faults import clusters
from tests.faults.clusters import events
from tests.faults.table import Fault
from tests.faults.test_clusters import build_evidence, empty_masks
from workflows import cli
from workflows.clusters import slurm
from workflows.clusters.slurm import SlurmConfig, slurm_cluster

__all__ = ["empty_masks"]  # a fixture

SBATCH = """#!{python}
import os, re, subprocess, sys
folder = {folder!r}
if os.path.exists(os.path.join(folder, "closed")):
    sys.exit("sbatch: error: the queue is closed")
script = open(sys.argv[1]).read()
hours, minutes, seconds = map(int, re.search(r"#SBATCH -t (\\d+):(\\d+):(\\d+)", script).groups())
number = 1 + len([name for name in os.listdir(folder) if name.endswith(".sh")])
path = os.path.join(folder, f"{{number}}.sh")
open(path, "w").write(script)
output = open(os.path.join(folder, f"{{number}}.out"), "wb")
job = subprocess.Popen(["bash", path], stdout=output, stderr=output, start_new_session=True)
limit = hours * 3600 + minutes * 60 + seconds
watch = f"sleep {{limit}}; kill -9 -{{job.pid}} && echo {{number}} >> {folder}/timeouts"
quiet = subprocess.DEVNULL
watcher = subprocess.Popen(["bash", "-c", watch], stdout=quiet, stderr=quiet, start_new_session=True)
open(os.path.join(folder, f"{{number}}.watcher"), "w").write(str(watcher.pid))
open(os.path.join(folder, f"{{number}}.pid"), "w").write(str(job.pid))
print(f"Submitted batch job {{number}}")
"""

SCANCEL = """#!/bin/bash
kill -TERM -$(cat {folder}/$1.pid)
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the jobs that were submitted; sbatch and scancel are on the path."""
    folder, tools = tmp_path / "queue", tmp_path / "bin"
    folder.mkdir()
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tools / name).write_text(text.format(python=sys.executable, folder=str(folder)))
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(slurm, "REPLACE_S", 1.0)
    monkeypatch.setattr(slurm, "MARGIN_S", 12)  # a worker takes seconds to start
    importlib.import_module("distributed")  # brings its settings, before one of them is changed
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        yield folder
    for path in (
        *folder.glob("*.watcher"),
        *folder.glob("*.pid"),
    ):  # or they would kill who has the number then
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def name_an_image(empty_masks: Path) -> None:
    """Masks that fit the streets, none in any frame."""
    masks = json.loads(empty_masks.read_text())
    masks["images"] = [{"id": 1, "file_name": "test_0000/000000.png", "width": 208, "height": 64}]
    empty_masks.write_text(json.dumps(masks))


def jobs(folder: Path) -> list[str]:
    """Scripts of all jobs, as submitted."""
    return [path.read_text() for path in folder.glob("*.sh")]


@pytest.mark.fault(Fault.CLUSTER)
@pytest.mark.fault(Fault.KILLED)
@pytest.mark.slow  # a minute, most of it waiting
@pytest.mark.parametrize("retires", [True, False])
def test_a_build_outlives_its_jobs_generation_after_generation(
    queue: Path, tmp_path: Path, empty_masks: Path, retires: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs end long before the build does: by retiring in time, or killed at their wall time."""
    if not retires:
        monkeypatch.setattr(SlurmConfig, "lifetime_s", (3600, 1))
    clips = [clusters.slow_clip("a", tmp_path, frames=120, pause_s=0.5)]
    config = SlurmConfig(jobs=2, walltime_s=25, local=str(tmp_path / "local"), logs=tmp_path / "logs")
    with slurm_cluster(config) as cluster:
        graph = GraphConfig(scheduler=cluster.scheduler_address, worker_timeout_s=clusters.PATIENCE_S)
        build_evidence(tmp_path / "set", clips, empty_masks, graph)
    generations = len({process for _, process in events(tmp_path)})
    timeouts = queue / "timeouts"
    print(
        f"jobs {len(jobs(queue))}, worker processes that did work {generations}, killed: {timeouts.exists()}"
    )
    assert generations >= 3  # two jobs at a time: at least a second generation worked
    if not retires:
        assert timeouts.read_text().split()  # kill -9 at the wall time, in the middle of work
    build_evidence(tmp_path / "calm", clips, empty_masks, GraphConfig(workers=0))
    assert contents(tmp_path / "set", "frames", "evidence") == contents(
        tmp_path / "calm", "frames", "evidence"
    )


@pytest.mark.fault(Fault.CLUSTER)
def test_the_slurm_script_runs_a_command_on_jobs_as_asked_for(
    queue: Path, streets: Path, tmp_path: Path, empty_masks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name_an_image(empty_masks)
    options = ("--walltime-s", "300", "--queue", "short", "--local", str(tmp_path / "local"))
    options += ("--directive=--constraint=a100", "--directive=--exclusive", "--prologue", "export A=1")
    command = (
        "build",
        streets,
        tmp_path / "set",
        "--size",
        "208",
        "64",
        "--detector",
        f"masks:{empty_masks}",
    )
    line = ("--jobs", "1", *options, "--gpu", "--logs", tmp_path / "logs", "--", *command, "--quiet")
    assert slurm.main(list(map(str, line))) == 0, capfd.readouterr().err
    assert (tmp_path / "set" / "shardset.json").exists()
    (script,) = jobs(queue)
    asked = (
        "-t 00:05:00",
        "-p short",
        "--gres=gpu:1",
        "--cpus-per-task=1",
        "--constraint=a100",
        "--exclusive",
    )
    for option in asked:
        assert f"#SBATCH {option}" in script
    assert "export A=1" in script.splitlines()
    assert "export OMP_NUM_THREADS=1" in script
    (worker,) = [each for each in script.splitlines() if "dask_worker" in each]
    for option in ("--nthreads 1", "--nanny", "--resources GPU=1"):
        assert option in worker
    lifetime, stagger = re.search(r"--lifetime (\d+)s --lifetime-stagger (\d+)s", worker).groups()  # type: ignore[union-attr]
    assert int(lifetime) + int(stagger) < 300  # it ends before its job is killed


@pytest.mark.fault(Fault.CLUSTER)
def test_jobs_that_slurm_refuses_for_a_while_are_submitted_later(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SlurmConfig(jobs=1, walltime_s=300, local=str(tmp_path / "local"), logs=tmp_path / "logs")
    said = tmp_path / "said"
    with said.open("w", buffering=1) as file, slurm_cluster(config) as cluster:
        monkeypatch.setattr(sys, "stderr", file)  # capfd would lose what another thread writes while it reads

        def has_a_worker() -> bool:
            return len(cluster.scheduler_info["workers"]) == 1

        clusters.wait_until(has_a_worker)
        (queue / "closed").touch()
        os.killpg(int((queue / "1.pid").read_text()), signal.SIGKILL)
        clusters.wait_until(lambda: "the queue is closed" in said.read_text())
        (queue / "closed").unlink()
        clusters.wait_until(lambda: len(jobs(queue)) == 2 and has_a_worker())
    assert said.read_text() == (
        "Slurm takes no job: sbatch: error: the queue is closed; asking again every 1 s\n"
    )


@pytest.mark.fault(Fault.STOPPED)
@pytest.mark.fault(Fault.CLUSTER)
def test_ctrl_c_while_jobs_are_waited_for_is_said_and_has_its_exit_code(
    queue: Path, streets: Path, empty_masks: Path, tmp_path: Path
) -> None:
    (queue.parent / "bin" / "sbatch").write_text("#!/bin/bash\ntouch $0.asked; echo Submitted batch job 1\n")
    name_an_image(empty_masks)
    command = ("build", streets, tmp_path / "set", "--detector", f"masks:{empty_masks}")
    line = ("--logs", tmp_path / "logs", "--", *command)
    process = subprocess.Popen(
        [sys.executable, "-m", "workflows.clusters.slurm", *map(str, line)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    clusters.wait_until((queue.parent / "bin" / "sbatch.asked").exists)
    while process.poll() is None:  # Python may swallow one, where it frees memory in a callback
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    said = process.communicate()[1]
    assert (
        process.returncode,
        "to go on" in said,
        said.count("Traceback") > said.count("Exception ignored in"),
    ) == (130, True, False), said


@pytest.mark.fault(Fault.CLUSTER)
def test_without_slurm_and_without_room_is_one_line(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    line = ("--logs", str(tmp_path / "logs"), "--", "build", "SOURCE", "OUT")
    (queue / "closed").touch()
    assert slurm.main(line) == 1
    assert capfd.readouterr().err == "error: Slurm takes no job: sbatch: error: the queue is closed\n"
    monkeypatch.setenv("PATH", "/nowhere")
    assert slurm.main(line) == 1
    complaint = "cannot run sbatch (No such file or directory); is this a machine with Slurm?"
    assert capfd.readouterr().err == f"error: {complaint}\n"
    assert signal.getsignal(signal.SIGINT) is before  # dask-jobqueue takes it when it is imported


def test_the_slurm_script_says_what_is_wrong_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert slurm.main(["--jobs", "1"]) == 2
    assert capfd.readouterr().err == "error: give a command after --, such as: -- build SOURCE OUT\n"
    done = subprocess.run(
        [sys.executable, "-m", "workflows.clusters.slurm", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--lifetime" not in done.stdout  # follows from the wall time


def test_the_kubernetes_objects_fit_together_and_their_commands_can_be_parsed() -> None:
    """Without a cluster; the operator's own builders were tried by hand, see CLUSTERS.md."""
    from distributed.cli import dask_scheduler, dask_worker

    text = (ROOT / "workflows" / "clusters" / "kubernetes.yaml").read_text()
    cluster, group, job = yaml.safe_load_all(text)
    name = cluster["metadata"]["name"]
    specs = {
        "scheduler": cluster["spec"]["scheduler"]["spec"],
        "workers": cluster["spec"]["worker"]["spec"],
        "gpus": group["spec"]["worker"]["spec"],
        "job": job["spec"]["template"]["spec"],
    }
    containers = {kind: spec["containers"][0] for kind, spec in specs.items()}
    assert len({container["image"] for container in containers.values()}) == 1
    assert group["spec"]["cluster"] == name
    assert cluster["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    for kind in ("workers", "gpus"):
        _, *options = containers[kind]["args"]
        parsed = dask_worker.main.make_context("dask-worker", list(options)).params
        assert parsed["nthreads"] == 1
        assert (parsed["resources"] == "GPU=1") == (kind == "gpus")
        assert {"name": "OMP_NUM_THREADS", "value": "1"} in containers[kind]["env"]
    assert "nvidia.com/gpu" in containers["gpus"]["resources"]["limits"]
    dask_scheduler.main.make_context("dask-scheduler", containers["scheduler"]["args"][1:])
    program, command, *options = containers["job"]["args"]
    assert (program, command) == ("instance-motion", "build")
    arguments = cli._parse(importlib.import_module("workflows.commands.build"), "build", options)
    assert arguments.graph.scheduler == f"tcp://{name}-scheduler:8786"
    for kind in ("workers", "gpus", "job"):
        mounts = {mount["mountPath"] for mount in containers[kind]["volumeMounts"]}
        assert mounts >= {str(arguments.source), str(arguments.out.parent)}
        assert {mount["name"] for mount in containers[kind]["volumeMounts"]} == {
            volume["name"] for volume in specs[kind]["volumes"]
        }
