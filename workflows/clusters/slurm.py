"""Run `instance-motion` on workers that are Slurm jobs, through dask-jobqueue.

    python -m workflows.clusters.slurm --jobs 20 --gpu --walltime-s 7200 -- build SOURCE OUT

What follows `--` is a command of instance-motion that takes --scheduler. Each job is one worker
with one thread. A worker retires before its job's wall time, handing its task on; jobs that
ended, however, are replaced until the command is done. The scheduler runs in this process: start
it where it may stay (tmux on a login node, or a small job of its own). Stopped or killed, it is
started again with the same line and goes on.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from pipeline.errors import BuildError, ConfigError
from pipeline.events import Event, event
from workflows import cli

MARGIN_S = 120
"""Between a worker's latest retirement and its job's wall time: time to close."""
REPLACE_S = 10.0
"""How often ended jobs are replaced."""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What to ask Slurm for."""

    jobs: int = 4
    """Jobs to keep in the queue or running: workers."""
    walltime_s: int = 4 * 3600
    """Wall time of a job. A task that is cut off is done again: leave time for a hundred."""
    memory: str = "8GB"
    """Memory of a job."""
    gpu: bool = False
    """One GPU a job (`--gres=gpu:1`), and the worker resource GPU."""
    queue: str | None = None
    """Partition."""
    account: str | None = None
    """Account to charge."""
    interface: str | None = None
    """Network interface between this machine and the nodes, such as ib0."""
    directive: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """One more #SBATCH option, with the equals sign: --directive=--constraint=a100; may be repeated."""
    prologue: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A shell line before the worker, such as 'module load cuda'; may be repeated."""
    local: str = "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
    """Fast local folder of a node, for the worker's own files; the shell of the job expands it."""
    logs: Path = Path("slurm-logs")
    """Folder of the jobs' output."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ConfigError(f"jobs must be positive, got {self.jobs}")
        if self.walltime_s <= 2 * MARGIN_S:
            raise ConfigError(f"walltime_s must be more than {2 * MARGIN_S}, got {self.walltime_s}")

    @property
    def lifetime_s(self) -> tuple[int, int]:
        """When a worker retires, and how much earlier or later: workers must not all go at once."""
        usable = self.walltime_s - MARGIN_S
        stagger = min(usable // 10, 600)
        return usable - stagger, stagger


@contextmanager
def slurm_cluster(config: SlurmConfig) -> Iterator[Any]:
    """A dask scheduler in this process, and jobs with workers for the time of a `with` block.

    Raises:
        BuildError: Slurm takes no job.
    """
    handler = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    # On import it takes Ctrl-C for itself: a silent end with exit code 0.
    signal.signal(signal.SIGINT, handler)
    lifetime_s, stagger_s = config.lifetime_s
    cluster = SLURMCluster(
        cores=1,
        processes=1,  # dask-jobqueue does not see that a job with several workers has ended
        memory=config.memory,
        walltime=_clock(config.walltime_s),
        queue=config.queue,
        account=config.account,
        interface=config.interface,
        scheduler_options={"dashboard_address": ":0"},  # a login node is shared: any free port
        job_extra_directives=[*(["--gres=gpu:1"] if config.gpu else []), *config.directive],
        job_script_prologue=[
            "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1",
            *config.prologue,
        ],
        worker_extra_args=[
            *("--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{stagger_s}s", "--no-dashboard"),
            *(["--resources", "GPU=1"] if config.gpu else []),
        ],
        local_directory=f'"{config.local}"',
        log_directory=str(config.logs),
        job_name="instance-motion",
    )
    done = threading.Event()

    def keep() -> None:
        # Not `adapt`: it looks at the backlog, and a build shows none, on purpose.
        said = ""
        while not done.wait(REPLACE_S):
            refusal = _submit(cluster, config.jobs)
            if refusal and refusal != said:
                line = f"{refusal}; asking again every {REPLACE_S:.0f} s"
                tqdm.write(line, file=sys.stderr)
                event(Event.SAID, line=line)
            said = refusal

    # The thread is waited for, also after Ctrl-C: a cluster cannot be closed while it submits a job.
    with cluster, ThreadPoolExecutor(1) as thread:
        if refusal := thread.submit(_submit, cluster, config.jobs).result():
            raise BuildError(refusal)
        keeper = thread.submit(keep)
        try:
            yield cluster
        finally:
            done.set()
            keeper.result()


def _submit(cluster: Any, jobs: int) -> str:
    """Have so many jobs in the queue or running; why Slurm took one no more, or nothing."""
    from distributed import Status

    async def submit() -> None:
        while len(cluster.worker_spec) < jobs:
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            await cluster
        finally:  # dask takes jobs that were refused for jobs in the queue
            refused = [name for name, job in cluster.workers.items() if job.status == Status.created]
            for name in refused:
                cluster.workers.pop(name).status = Status.failed
                del cluster.worker_spec[name]

    try:
        cluster.sync(submit)
    except OSError as error:
        if error.filename is None:
            return f"no job could be submitted ({type(error).__name__}: {error})"
        return f"cannot run {error.filename} ({error.strerror}); is this a machine with Slurm?"
    except RuntimeError as error:
        return f"Slurm takes no job: {str(error).split('stderr:')[-1].strip() or error}"
    except Exception as error:  # the build goes on with the jobs that there are
        return f"no job could be submitted ({type(error).__name__}: {error})"
    return ""


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code of the command."""
    line = list(sys.argv[1:] if arguments is None else arguments)
    cut = line.index("--") if "--" in line else len(line)
    try:
        config = tyro.cli(SlurmConfig, description=__doc__, args=line[:cut])
        if not line[cut + 1 :]:
            raise ConfigError("give a command after --, such as: -- build SOURCE OUT")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with slurm_cluster(config) as cluster:
            # The first job may wait in the queue for as long as it takes.
            waits = ("--worker-timeout-s", "604800", "--lost-workers-timeout-s", "604800")
            return cli.main([*line[cut + 1 :], "--scheduler", cluster.scheduler_address, *waits])
    except BuildError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same line again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
