"""The loop: runs that go on exactly, curricula, losses that are no numbers, what is left for people."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, TrainingError
from tests.faults.table import Fault
from tests.training.runs import (
    checkpoint_of,
    difference,
    difference_of_runs,
    finish,
    settings,
    start,
    wait_for_step,
)
from training import checkpoint, loop, objective
from training.alignment import AlignmentConfig
from training.config import TrainConfig
from training.data import Batch, Loader, make_loader
from training.loop import train
from training.motion import MotionConfig
from training.networks.build import make_networks
from training.record import Record, read_metrics


def quietly(config: TrainConfig, out: Path, resume: bool = False) -> list[str]:
    """Train; the lines that were said."""
    said: list[str] = []
    train(config, out, resume=resume, quiet=True, say=said.append)
    return said


@pytest.fixture(scope="module")
def whole(street_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps in one go."""
    out = tmp_path_factory.mktemp("whole") / "run"
    quietly(settings(street_shards, picture_every=4), out)
    return out


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Ctrl-C while that step is being logged."""
    scalars = Record.scalars

    def and_interrupt(self: Record, kind: str, values: dict[str, float], at: int) -> None:
        scalars(self, kind, values, at)
        if kind == "train" and at == step - 1:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Record, "scalars", and_interrupt)


# ---------------------------------------------------------------------------- going on


@pytest.mark.fault(Fault.TRAINING_KILLED)
@pytest.mark.parametrize(
    "workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_a_killed_run_goes_on_bit_for_bit(
    workers: int, street_shards: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed at any moment after its third step, at best in the middle of a step or of a file."""
    config, out = settings(street_shards, data_workers=workers, picture_every=4), tmp_path / "run"
    process = start(config, out)
    wait_for_step(process, out, 3)
    time.sleep(random.uniform(0, 0.4))
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process, out)[0] == -signal.SIGKILL
    before = checkpoint_of(out).progress.step

    quietly(config, out, resume=True)

    assert before in (3, 4, 6)  # every third, and the first that was validated
    assert difference_of_runs(out, whole) is None


@pytest.mark.fault(Fault.STOPPED)
def test_a_run_stopped_by_ctrl_c_again_and_again_goes_on_bit_for_bit(
    street_shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first instances, which come at step 4, and at the end of the epoch of 5 steps."""
    config, out = settings(street_shards), tmp_path / "run"
    for step in (4, 5):
        with monkeypatch.context() as patched:
            interrupt_after(step, patched)
            told = f"stopped after step {step}; .*--resume goes on from there"
            with pytest.raises(KeyboardInterrupt, match=told):
                quietly(config, out, resume=step > 4)
        assert checkpoint_of(out).progress.step == step
        assert [row["step"] for row in read_metrics(out) if row["kind"] == "train"] == list(range(step))
    (out / ".last.pt.1234.partial").write_bytes(b"what a kill in the middle of a save leaves")

    quietly(replace(config, checkpoint_every=100), out, resume=True)

    assert difference_of_runs(out, whole, but=("checkpoint_every", "picture_every")) is None
    assert not list(out.glob(".*.partial"))


@pytest.mark.fault(Fault.STOPPED)
def test_a_run_with_hints_and_alignment_goes_on_bit_for_bit(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hints sweep one direction at even steps and the other at odd ones, also after a resume."""
    motion = MotionConfig(
        crop_px=32,
        alpha=2,
        grounded=0.3,
        static_gate=True,
        gate_margin=0.1,
        alignment=AlignmentConfig(camera_steps=1, object_steps=1),
    )
    config = settings(street_shards, objective_hint=1.0, objective_scale=0.1, objective_motion=motion)
    quietly(config, tmp_path / "whole")
    terms = {"hint", "scale", "camera_alignment", "object_alignment"}
    assert terms <= set(read_metrics(tmp_path / "whole")[-1])
    with monkeypatch.context() as patched:
        interrupt_after(5, patched)
        with pytest.raises(KeyboardInterrupt):
            quietly(config, tmp_path / "run")
    quietly(config, tmp_path / "run", resume=True)
    assert difference_of_runs(tmp_path / "run", tmp_path / "whole") is None


@pytest.mark.fault(Fault.STOPPED)
def test_a_second_ctrl_c_stops_at_once(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(1, monkeypatch, times=2)
    with pytest.raises(KeyboardInterrupt) as stop:
        quietly(settings(street_shards), tmp_path / "run")
    assert not str(stop.value)
    assert not (tmp_path / "run" / "last.pt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.fault(Fault.STOPPED)
@pytest.mark.parametrize("what", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes_of_a_run_ends_it_in_order(
    what: signal.Signals, street_shards: Path, tmp_path: Path
) -> None:
    """As a terminal sends Ctrl-C, and a batch system SIGTERM: to the workers, too."""
    out = tmp_path / "run"
    config = settings(street_shards, data_workers=2, steps=10_000, optimise_schedule="constant")
    process = start(config, out)
    wait_for_step(process, out, 1)
    os.killpg(process.pid, what)
    code, said = finish(process, out)

    done = checkpoint_of(out).progress.step
    assert (code, said.splitlines()[-1]) == (
        130,
        f"interrupted: stopped after step {done}; the same command with --resume goes on from there",
    )
    assert "Traceback" not in said
    quietly(replace(config, steps=done + 1), out, resume=True)
    assert checkpoint_of(out).progress.step == done + 1


def test_weights_are_the_same_for_any_way_to_stop_and_go_on(whole: Path) -> None:
    """What the comparisons above rest on: they compare something, and it has moved."""
    found, averaged = checkpoint_of(whole), checkpoint_of(whole).averaged
    assert averaged is not None
    assert set(averaged) == set(found.networks)
    assert found.progress == replace(found.progress, step=8, epoch=1, epoch_step=3, bad_in_a_row=0)
    assert not torch.equal(
        averaged["depth.body.heads.0.conv.bias"], found.networks["depth.body.heads.0.conv.bias"]
    )
    assert found.optimiser["state"][0]["step"] == 8
    first = make_networks(found.config.networks, "crop", 32).state_dict()
    assert all(
        difference(value, first[name])
        for name, value in found.networks.items()
        if name.endswith("conv1.weight")
    )


# ---------------------------------------------------------------------------- curriculum, metrics, pictures


def test_instances_come_in_at_their_step_with_heights_from_the_ground(whole: Path) -> None:
    rows = [row for row in read_metrics(whole) if row["kind"] == "train"]
    instance_terms = {"instance_photometric", "size", "contact", "consistency"}
    assert [row["step"] for row in rows] == list(range(8))
    for row in rows:
        assert (instance_terms & set(row)) == (instance_terms if row["step"] >= 4 else set())
    state = checkpoint_of(whole)
    assert state.averaged is not None
    height = state.networks["log_height"]
    assert (height.abs() > 0.1).all()  # began at 0, and no more than 4 x .001 was learned since
    torch.testing.assert_close(state.averaged["log_height"], height, atol=4e-3, rtol=0)


def test_the_rate_falls_as_scheduled(whole: Path) -> None:
    rates = [row["rate"] for row in read_metrics(whole) if row["kind"] == "train"]
    assert rates == pytest.approx([1e-3] * 6 + [2e-4] * 2)


def test_held_out_windows_are_measured_and_the_best_weights_kept(whole: Path) -> None:
    rows = [row for row in read_metrics(whole) if row["kind"] == "validation"]
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        assert {"total", "photometric", "geometric", "smoothness"} <= set(row)
    best = checkpoint.load(whole / "best.pt")
    assert best.progress.best_loss == min(row["photometric"] for row in rows)
    assert best.progress.step == min(rows, key=lambda row: row["photometric"])["step"]


def test_validation_is_the_mean_over_windows_of_the_averaged_weights(whole: Path) -> None:
    state = checkpoint_of(whole)
    networks = checkpoint.restore_networks(state, "cpu")
    data = replace(state.config.data, batch_size=1)
    with torch.no_grad():
        losses = [
            float(objective.training_step(networks, batch, state.config.objective, 8).terms["photometric"])
            for batch in make_loader(data, split="validation")
        ]
    assert len(losses) == 3
    row = read_metrics(whole)[-1]
    assert row["kind"] == "validation"
    assert row["photometric"] == pytest.approx(sum(losses) / 3, rel=1e-4)


def test_pictures_and_curves_are_in_the_event_file(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    background = {"target", "source", "disparity", "view", "error"}
    assert set(events.Tags()["images"]) == background | {"intermediate", "object_motion"}
    assert [event.step for event in events.Images("disparity")] == [0, 4]
    assert [event.step for event in events.Images("object_motion")] == [4]
    shown = events.Images("view")[0]
    assert (shown.width, shown.height) == (104, 32)
    assert [event.step for event in events.Scalars("train/photometric")] == list(range(8))
    assert [event.step for event in events.Scalars("validation/photometric")] == [4, 8]


def test_the_resolved_configuration_is_kept(whole: Path, street_shards: Path) -> None:
    from pipeline.configuration import from_dict, read_yaml

    kept = from_dict(TrainConfig, read_yaml(whole / "config.yaml"))
    assert kept == settings(street_shards, picture_every=4)
    assert checkpoint_of(whole).config == kept


def test_a_run_writes_down_the_size_at_which_its_networks_see_frames(
    street_shards: Path, tmp_path: Path
) -> None:
    """Not given, it is what the shards store; who predicts from other shards must know."""
    config = settings(street_shards, data_size=None, steps=1)
    train(config, tmp_path / "run", quiet=True)
    assert checkpoint_of(tmp_path / "run").config.data.size == (208, 64)
    train(replace(config, steps=2), tmp_path / "run", resume=True, quiet=True)  # not given again
    sized = replace(config, steps=3, data=replace(config.data, size=(208, 64)))
    train(sized, tmp_path / "run", resume=True, quiet=True)
    with pytest.raises(ConfigError, match="data.size"):
        train(
            settings(street_shards, data_size=(104, 32), steps=4), tmp_path / "run", resume=True, quiet=True
        )


@pytest.mark.fault(Fault.TRAINING_KILLED)
def test_a_row_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "kind": "train"}\n{"step": 1, "ki')
    assert read_metrics(tmp_path) == [{"step": 0, "kind": "train"}]


def test_first_heights_come_from_the_same_windows_for_any_batch(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def look(networks: nn.Module, batches: Iterable[Batch], count: int) -> Tensor:
        seen.append([name for batch in islice(batches, count) for name in batch.names])
        raise Enough

    seen: list[list[str]] = []
    monkeypatch.setattr(loop, "initial_log_heights", look)
    monkeypatch.setattr(loop, "HEIGHT_WINDOWS", 3)
    for batch_size in (1, 2):
        config = settings(street_shards, data_batch_size=batch_size, objective_instances_from=0)
        with pytest.raises(Enough):
            quietly(config, tmp_path / str(batch_size))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3


# ---------------------------------------------------------------------------- one line each


def test_a_folder_with_a_run_is_not_written_over(whole: Path, street_shards: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds a run already; --resume goes on with it, or choose"):
        quietly(settings(street_shards), whole)


def test_the_best_weights_of_a_run_that_was_killed_early_do_not_pass_for_those_of_another(
    whole: Path, street_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "best.pt").write_bytes((whole / "best.pt").read_bytes())
    with pytest.raises(
        TrainingError, match=r"holds a best.pt without last.pt; move it away, or choose another"
    ):
        quietly(settings(street_shards), tmp_path)


def test_a_run_on_other_processes_would_go_on_with_other_samples(
    whole: Path, street_shards: Path, tmp_path: Path
) -> None:
    found = checkpoint_of(whole)
    assert found.processes == 1
    checkpoint.save(tmp_path / "last.pt", replace(found, processes=4))
    with pytest.raises(ConfigError, match=r"was on 4 process\(es\), this is on 1; resume on as many, or"):
        quietly(found.config, tmp_path, resume=True)


def test_what_is_not_there_is_not_resumed(street_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"last\.pt does not exist.*leave --resume out"):
        quietly(settings(street_shards), tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimise_rate": 2e-3}, "optimise.rate is 0.002, the run to resume has 0.001"),
        ({"data_seed": 4}, "data.seed is 4, the run to resume has 3"),
        ({"objective_photometric": 2.0}, "objective.photometric is 2.0, the run to resume has 1.0"),
        ({"training_seed": 1}, "training_seed is 1, the run to resume has 0"),
        ({"amp": True}, "amp is True, the run to resume has False"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    changes: dict[str, Any], message: str, whole: Path, street_shards: Path
) -> None:
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    with pytest.raises(ConfigError) as error:
        quietly(settings(street_shards, **changes), whole, resume=True)
    assert str(error.value) == f"{message}; resume with the same settings, or start a new run with init_from"
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_a_device_that_is_not_there_is_one_line(street_shards: Path, tmp_path: Path) -> None:
    for device, message in (("cuda:97", r"cuda:97 asked for, \d+ GPUs are here"), ("gpu", "'gpu' is none")):
        with pytest.raises(ConfigError, match=message):
            quietly(settings(street_shards, device=device), tmp_path / "run")


# ---------------------------------------------------------------------------- pretrain, then finetune


def test_a_run_starts_from_the_weights_of_another(street_shards: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    short: dict[str, Any] = {"steps": 1, "optimise_schedule": "constant", "objective_instances_from": 1000}
    quietly(settings(street_shards, **short), first)
    # Best already in the first validation.
    pretrained = checkpoint.load(first / "best.pt")
    assert pretrained.progress.step == 1
    assert pretrained.progress.best_loss is not None

    finetune = settings(street_shards, init_from=first, training_seed=5, optimise_rate=1e-12, **short)
    said = quietly(finetune, second)

    assert f"weights from {first}" in said
    assert not any("random weights" in line for line in said)
    found = checkpoint_of(second)
    assert found.progress.step == 1
    assert found.optimiser["state"][0]["step"] == 1
    for name, value in pretrained.weights.items():
        torch.testing.assert_close(found.networks[name], value, atol=1e-9, rtol=0, msg=name)


def test_weights_of_other_networks_are_refused(whole: Path, street_shards: Path, tmp_path: Path) -> None:
    config = settings(street_shards, init_from=whole)
    wider = replace(config.networks, ego=replace(config.networks.ego, width=0.5))
    with pytest.raises(
        TrainingError, match=r"weights ego\.\S+ are \(.*\), expected \(.*\); its networks are others"
    ):
        quietly(replace(config, networks=wider), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- losses that are no numbers


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps whose images get a pixel that is no number."""
    steps: set[int] = set()
    iterate = Loader.__iter__

    def poisoned(self: Loader) -> Iterator[Batch]:
        for batch in iterate(self):
            number = self.state.epoch * len(self) + self.state.step - 1
            if number in steps and self.dataset.config.batch_size > 1:
                batch.images[0, 0, 0, 3, 5] = torch.nan
            yield batch

    monkeypatch.setattr(Loader, "__iter__", poisoned)
    return steps


@pytest.mark.fault(Fault.NAN)
def test_a_bad_step_changes_nothing_and_its_batch_is_kept(
    street_shards: Path, tmp_path: Path, poison: set[int]
) -> None:
    """Batch normalisation counts: its statistics would stay spoilt for good."""
    config = settings(street_shards, data_held_out=(), optimise_schedule="constant")
    networks = replace(config.networks, depth=replace(config.networks.depth, norm="batch"))
    config = replace(config, networks=networks, bad_steps=2)
    quietly(replace(config, steps=1), tmp_path / "good")
    poison.update({1})
    said = quietly(replace(config, steps=2), tmp_path / "bad")

    good, bad = checkpoint_of(tmp_path / "good"), checkpoint_of(tmp_path / "bad")
    for part in ("networks", "averaged", "optimiser"):
        assert difference(getattr(good, part), getattr(bad, part), part) is None
    assert (bad.progress.step, bad.progress.bad_in_a_row) == (2, 1)
    kept = tmp_path / "bad" / "bad" / "step_0000001_rank_0.pt"
    assert re.fullmatch(
        rf"step 1: term (photometric|smoothness) is not a number; no update; batch kept in {kept}", said[-1]
    )
    content = torch.load(kept, weights_only=True)
    assert content["images"].shape == (2, 2, 3, 32, 104)
    assert content["images"].isnan().sum() == 1
    assert len(content["names"]) == 2
    assert content["names"][0].startswith("set/test_000")


@pytest.mark.fault(Fault.NAN)
def test_bad_steps_in_a_row_stop_the_run_and_good_ones_between_do_not(
    street_shards: Path, tmp_path: Path, poison: set[int]
) -> None:
    config = settings(street_shards, data_held_out=(), bad_steps=3, objective_instances_from=1000)
    poison.update({1, 2, 4, 5, 6})
    out = tmp_path / "run"
    with pytest.raises(TrainingError) as error:
        quietly(config, out)
    assert re.match(
        r"term \w+ was not a number 3 steps in a row, up to step 6; look at .*step_0000006", str(error.value)
    )
    assert sorted(int(path.name[5:12]) for path in (out / "bad").iterdir()) == [1, 2, 4, 5, 6]
    assert not any(value.isnan().any() for value in checkpoint_of(out).networks.values())


@pytest.mark.fault(Fault.NAN)
@pytest.mark.parametrize(
    ("name", "switches", "culprit"),
    [
        ("depth.body.heads.0.conv.bias", {}, r"term \w+"),
        # The loss is a number: nothing is visible, and what remains is smooth.
        (
            "ego.last.bias",
            {"objective_occlusion_weight": False, "objective_instances": False},
            "the gradient",
        ),
        ("objects.regress.3.bias", {}, r"term \w+"),
        ("log_height", {}, "term size"),
    ],
)
def test_weights_that_are_no_numbers_stop_the_run(
    name: str,
    switches: dict[str, Any],
    culprit: str,
    whole: Path,
    street_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = checkpoint_of(whole)
    assert state.averaged is not None
    state.averaged[name][...] = torch.nan
    checkpoint.save(tmp_path / "spoilt.pt", state)
    monkeypatch.setattr(loop, "initial_log_heights", lambda nets, *_: nets.log_height.detach().clone())
    start_from = {"init_from": tmp_path / "spoilt.pt", "bad_steps": 1, "objective_instances_from": 0}
    with pytest.raises(TrainingError, match=f"{culprit} was not a number 1 steps in a row, up to step 0"):
        quietly(settings(street_shards, **start_from, **switches), tmp_path / "run")


# ---------------------------------------------------------------------------- precision, compiler


def test_networks_run_in_bfloat16_and_geometry_in_float32(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: set[torch.dtype] = set()
    geometry: set[torch.dtype] = set()

    def watched(*arguments: Any) -> nn.Module:
        networks = make_networks(*arguments)
        for module in networks.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels > 6:
                module.register_forward_hook(lambda _, __, output: inside.add(output.dtype))
        return networks

    def watching(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            values = [*arguments, *named.values()]
            geometry.update(
                each.dtype for each in values if isinstance(each, Tensor) and each.is_floating_point()
            )
            assert not torch.is_autocast_enabled("cpu")
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(loop, "make_networks", watched)
    monkeypatch.setattr(objective, "inverse_warp", watching(objective.inverse_warp))
    monkeypatch.setattr(
        "training.motion.forward_warp", watching(objective.find_motions.__globals__["forward_warp"])
    )
    monkeypatch.setattr("training.losses.photometric", watching(objective.losses.photometric))
    config = settings(
        street_shards, steps=2, amp=True, objective_instances_from=0, optimise_ema=None, data_held_out=()
    )
    quietly(config, tmp_path / "run")

    assert inside == {torch.bfloat16}
    assert geometry == {torch.float32}
    assert all(
        value.dtype == torch.float32
        for value in checkpoint_of(tmp_path / "run").networks.values()
        if value.is_floating_point()
    )
    assert all(abs(row["total"]) < 10 for row in read_metrics(tmp_path / "run"))


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_learn_the_same(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "initial_log_heights", lambda nets, *_: nets.log_height.detach().clone())
    short: dict[str, Any] = {"steps": 2, "objective_instances_from": 0, "objective_auto_mask": False}
    config = settings(street_shards, data_held_out=(), optimise_ema=None, **short)
    for name in ("plain", "compiled"):
        quietly(replace(config, compile=name == "compiled"), tmp_path / name)
    plain, compiled = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "compiled")
    assert [row["total"] for row in compiled] == pytest.approx([row["total"] for row in plain], rel=1e-4)
    assert list(checkpoint_of(tmp_path / "compiled").networks) == list(
        checkpoint_of(tmp_path / "plain").networks
    )


def test_the_networks_are_what_is_compiled(
    street_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    quietly(settings(street_shards, steps=1, compile=True, data_held_out=()), tmp_path / "run")
    assert compiled == ["DepthNet", "PoseNet", "CorrelationNet"]
