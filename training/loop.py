"""The training loop, top to bottom.

A run is a folder:

    config.yaml             the resolved configuration
    last.pt, best.pt        checkpoints: the newest, and the best on held-out clips
    metrics.jsonl           one line per logged step and per validation
    tensorboard/            the same as curves, and pictures
    bad/                    batches whose loss was not a number
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.configuration import to_dict
from pipeline.errors import TrainingError
from pipeline.progress import Bar
from training import checkpoint as checkpoints
from training.anchors import initial_log_heights
from training.checkpoint import Checkpoint, Progress
from training.config import OptimiserConfig, TrainConfig
from training.data import Batch, Loader, make_loader
from training.interruptions import one_line_of_lost_processes, stop_on_signal
from training.lease import run_lease
from training.networks.build import Networks, make_networks
from training.objective import ObjectiveConfig, Step, training_step
from training.record import Record
from training.sampler import SamplerState
from training.world import World, join_world

TERMS = (
    *("photometric", "instance_photometric", "geometric", "smoothness"),
    *("scale", "hint", "camera_alignment", "object_alignment"),
    *("size", "contact", "compact", "consistency"),
)
"""Every term that a step may have; a batch without instances has fewer."""

HEIGHT_WINDOWS = 64
"""Windows over which the classes' first heights are measured."""


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train, or go on training, until `config.steps` updates are done.

    Ctrl-C finishes the step in hand, writes last.pt and raises KeyboardInterrupt; `resume`
    then goes on exactly there: on the CPU bit for bit as if nothing had happened.

    Args:
        out:    folder of the run.
        resume: go on with the run that is there.
        say:    called with one line of news at a time.

    Returns:
        The checkpoint to predict with.

    Raises:
        ConfigError:   settings that do not fit each other, the data or the machine.
        ShardError:    data that are missing or damaged.
        TrainingError: `out` holds a run and `resume` is not set, or the other way round, or another
            training writes into it; a checkpoint that does not fit; losses that keep being no numbers; a
            data worker or another process of this training that was killed.
    """
    with (
        join_world(config.device) as world,
        one_line_of_lost_processes(world),
        run_lease(out, world),
        stop_on_signal() as stop,
    ):
        found = checkpoints.find_run(out, resume)
        return _Training(config, out, world, found, quiet, say).run(stop)


class Model(nn.Module):
    """Networks and objective as one module, so that a data-parallel wrapper sees one call."""

    def __init__(self, networks: Networks, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.networks, self.objective = networks, objective

    def forward(self, batch: Batch, step: int) -> Step:
        return training_step(self.networks, batch, self.objective, step)


class _Training:
    """Everything that changes while a run goes on."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        world: World,
        found: Checkpoint | None,
        quiet: bool,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.out, self.world = config, out, world
        self.quiet, self.say = quiet or not world.leads, say if world.leads else lambda line: None
        if found is not None:
            checkpoints.require_same(found.config, config)
        torch.manual_seed(config.training_seed)
        self.progress = found.progress if found else Progress()
        self.loader = self._make_loader()
        self.data = self.loader.dataset.digests()
        if found is not None:
            checkpoints.require_same_samples(found, self.data, world.size)
        # Who predicts must know at which size the networks saw frames, without asking for the shards.
        seen = dataclasses.replace(config.data, size=self.loader.dataset.size)
        self.config = config = dataclasses.replace(config, data=seen)
        self.held_out = self._make_held_out()
        self.networks = self._make_networks(found)
        self.average = (
            AveragedModel(
                self.networks, multi_avg_fn=get_ema_multi_avg_fn(config.optimise.ema), use_buffers=True
            )
            if config.optimise.ema
            else None
        )
        if self.average is not None:
            # Else the first update would be copied instead of averaged: not so after a resume.
            self.average.n_averaged.fill_(1)
        # After the average has been copied: the wrappers must not be copied with it.
        self.model = self._make_model()
        self.optimiser = make_optimiser(self.networks, config.optimise)
        if found is not None:
            checkpoints.restore_optimiser(self.optimiser, found.optimiser, str(out / "last.pt"))
            if self.average is not None and found.averaged is not None:
                checkpoints.require_fit(self.networks, found.averaged, f"{out / 'last.pt'}, averaged")
                self.average.module.load_state_dict(found.averaged)
            checkpoints.set_random_states(found.random)
        self.record = Record(out, world.leads, first_step=self.progress.step)

    def run(self, stop: Callable[[], bool]) -> Path:
        config, world = self.config, self.world
        if world.leads:
            self.record.configuration(to_dict(config))
        self._introduce()
        bar = Bar(
            total=config.steps, initial=self.progress.step, unit="step", disable=self.quiet, desc="train"
        )
        batches = self._batches()
        try:
            while self.progress.step < config.steps:
                step = self.progress.step
                if step == config.objective.instances_from and config.objective.instances:
                    self._measure_heights()
                outcome = self._update(next(batches), step)
                self._log(outcome, step, bar)
                bar.update()
                done = self.progress.step
                if self.held_out is not None and (done % config.validate_every == 0 or done == config.steps):
                    self._validate()
                stopping = world.any(stop())
                if done % config.checkpoint_every == 0 or done == config.steps or stopping:
                    self._save("last.pt")
                if stopping and done < config.steps:
                    raise KeyboardInterrupt(
                        f"stopped after step {done}; the same command with --resume goes on from there"
                    )
        finally:
            bar.close()
            self.record.close()
        return checkpoints.checkpoint_in(self.out) if world.leads else self.out / "last.pt"

    def _update(self, batch: Batch, step: int) -> Step:
        """One update of the weights, or none where the loss is not a number."""
        config = self.config.optimise
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * config.rate_at(step, self.config.steps)
        self.model.train()
        # Statistics of normalisation change in the forward pass already.
        statistics = [(buffer, buffer.clone()) for buffer in self.networks.buffers()]
        outcome: Step = self.model(batch, step)
        self.optimiser.zero_grad(set_to_none=True)
        # Also where the loss is bad: data-parallel processes must all arrive here.
        outcome.total.backward()
        norm = nn.utils.clip_grad_norm_(
            self.networks.parameters(), math.inf if config.clip_norm is None else config.clip_norm
        )
        # Nothing is visible under a motion that is no number: the loss may be one, the gradient is not.
        bad = self.world.any(not bool(torch.isfinite(outcome.total) & torch.isfinite(norm)))
        in_a_row = self.progress.bad_in_a_row + 1 if bad else 0
        if bad:
            for buffer, before in statistics:
                buffer.copy_(before)
            self._refuse(batch, outcome, step, in_a_row)
        else:
            self.optimiser.step()
            if self.average is not None:
                self.average.update_parameters(self.networks)
        self.progress = dataclasses.replace(
            self.progress,
            step=step + 1,
            epoch=self.loader.state.epoch,
            epoch_step=self.loader.state.step,
            bad_in_a_row=in_a_row,
        )
        return outcome

    def _refuse(self, batch: Batch, outcome: Step, step: int, in_a_row: int) -> None:
        """A loss or gradient that is not a number: say which, keep the batch, stop if it goes on.

        Raises:
            TrainingError: it has happened `bad_steps` times in a row.
        """
        finite = {name: bool(torch.isfinite(value)) for name, value in outcome.terms.items()}
        # Of all processes: the one that speaks may have had a good batch itself.
        found = self.world.any_of([not finite.get(name, True) for name in TERMS])
        bad = [name for name, is_bad in zip(TERMS, found, strict=True) if is_bad]
        culprit = f"term {bad[0]}" if bad else "the gradient"
        path = self.record.keep_batch(batch, step, self.world.rank)
        self.say(f"step {step}: {culprit} is not a number; no update; batch kept in {path}")
        if in_a_row >= self.config.bad_steps:
            raise TrainingError(
                f"{culprit} was not a number {in_a_row} steps in a row, up to step {step}; "
                f"look at {path}, and start a new run with init_from and a lower rate"
            )

    @torch.no_grad()
    def _validate(self) -> None:
        """Mean terms over the held-out windows; the best weights so far are kept."""
        assert self.held_out is not None
        networks = self.networks if self.average is None else self.average.module
        assert isinstance(networks, Networks)
        networks.eval()
        sums: dict[str, Tensor] = {}
        weight = torch.zeros((), device=self.world.device)
        self.held_out.state = SamplerState()
        for batch in self.held_out:
            if not len(batch):
                continue
            outcome = training_step(networks, batch, self.config.objective, self.progress.step)
            for name, value in {"total": outcome.total, **outcome.terms}.items():
                sums[name] = sums.get(name, 0) + value * len(batch)
            weight += len(batch)
        networks.train()
        weight = self.world.mean(weight)
        sums = {name: value / weight for name, value in sums.items()}
        means = self.world.means(sums, ("total", *TERMS))
        self.record.scalars("validation", means, self.progress.step)
        # Terms of anchors come and go with the curriculum; what is compared must not.
        loss = means["photometric"]
        best = self.progress.best_loss
        if math.isfinite(loss) and (best is None or loss < best):
            self.progress = dataclasses.replace(self.progress, best_loss=loss)
            self._save("best.pt")
            if best is None:  # a run with a best.pt can be resumed, from its beginning on
                self._save("last.pt")

    def _log(self, outcome: Step, step: int, bar: Bar) -> None:
        config = self.config
        if step % config.log_every == 0:
            means = self.world.means({"total": outcome.total, **outcome.terms}, ("total", *TERMS))
            rate = self.optimiser.param_groups[0]["lr"]
            self.record.scalars("train", {**means, "rate": rate}, step)
            bar.set_postfix_str(f"loss {means['total']:.4f}, photometric {means['photometric']:.4f}")
        if config.picture_every and step % config.picture_every == 0:
            self.record.pictures(outcome, step)

    def _save(self, name: str) -> None:
        if self.world.leads:
            average = self.average.module.state_dict() if self.average is not None else None
            content = Checkpoint(
                config=self.config,
                data=self.data,
                processes=self.world.size,
                networks=self.networks.state_dict(),
                averaged=average,
                optimiser=self.optimiser.state_dict(),
                progress=self.progress,
                random=checkpoints.random_states(),
            )
            checkpoints.save(self.out / name, content)
        self.world.wait()

    def _batches(self) -> Iterator[Batch]:
        """Batches without end, epoch after epoch."""
        while True:
            yield from self.loader

    def _measure_heights(self) -> None:
        """Begin the classes' heights where the depth that has been learned so far puts them."""
        # One by one, so that they are the same windows for any batch and number of processes.
        probe = make_loader(
            dataclasses.replace(self.config.data, workers=0, batch_size=1),
            state=SamplerState(),
            device=self.world.device,
        )
        heights = initial_log_heights(self.networks, probe, HEIGHT_WINDOWS)
        with torch.no_grad():
            self.networks.log_height.copy_(heights)
            if self.average is not None:
                averaged = self.average.module
                assert isinstance(averaged, Networks)
                averaged.log_height.copy_(heights)

    def _make_loader(self) -> Loader:
        return make_loader(
            self.config.data,
            state=SamplerState(self.progress.epoch, self.progress.epoch_step),
            rank=self.world.rank,
            world=self.world.size,
            device=self.world.device,
        )

    def _make_held_out(self) -> Loader | None:
        data = self.config.data
        if not data.held_out and not data.validation_share:
            return None
        return make_loader(
            dataclasses.replace(data, workers=0),
            split="validation",
            rank=self.world.rank,
            world=self.world.size,
            device=self.world.device,
        )

    def _make_networks(self, found: Checkpoint | None) -> Networks:
        config, motion = self.config, self.config.objective.motion
        source = found
        if source is None and config.init_from is not None:
            source = checkpoints.load(checkpoints.checkpoint_in(config.init_from))
        if source is not None:
            weights = source.networks if found is not None else source.weights
            where = str(config.init_from if found is None else self.out)
            networks = checkpoints.filled_networks(config, config.networks, weights, where)
            if found is None:
                self.say(f"weights from {config.init_from}")
        else:
            networks = make_networks(config.networks, motion.object_input, motion.crop_px)
            for line in networks.starts_from():
                self.say(line)
        networks = networks.to(self.world.device)
        if self.world.size > 1 and self.world.device.type == "cuda" and config.sync_batch_norm:
            return nn.SyncBatchNorm.convert_sync_batchnorm(networks)
        return networks

    def _make_model(self) -> nn.Module:
        config, world = self.config, self.world
        for network in (self.networks.depth, self.networks.ego, self.networks.objects):
            if config.amp:
                cast = torch.autocast(world.device.type, dtype=torch.bfloat16)
                network.forward = cast(network.forward)
            if config.compile:
                network.compile()
        model = Model(self.networks, config.objective)
        if world.size == 1:
            return model
        # Before the curriculum reaches the instances, and in batches without any, some weights rest.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def _introduce(self) -> None:
        for line in self.loader.dataset.describe():
            self.say(str(line))
        count = sum(weights.numel() for weights in self.networks.parameters())
        where = f"{self.world.size} x {self.world.device}" if self.world.size > 1 else str(self.world.device)
        self.say(f"{count / 1e6:.1f} M weights on {where}; steps {self.progress.step} to {self.config.steps}")


def make_optimiser(networks: Networks, config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser; object motion and heights have their own rate."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    groups = [
        {"params": [*networks.depth.parameters(), *networks.ego.parameters()], "lr": config.rate},
        {
            "params": [*networks.objects.parameters(), networks.log_height],
            "lr": config.rate * config.object_rate,
        },
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return kind(groups, betas=config.betas, weight_decay=config.weight_decay)
