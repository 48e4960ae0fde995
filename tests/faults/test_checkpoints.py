"""Checkpoints and weights from somebody else: no code is run, no more memory is taken than they hold, one line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.predict import predict
from pipeline.configuration import to_dict
from pipeline.detector_weights import read_pickled_arrays, read_torch_file
from pipeline.errors import ConfigError, DetectorError, InstanceMotionError, TrainingError
from pipeline.raft import _read
from pipeline.tensor_files import read_tensors
from tests.faults.forks import Forks, forks
from tests.faults.hostile_files import CANARY, CARRIES_CODE, CLAIMS_MORE, nested, with_part
from tests.faults.table import Fault
from tests.training.runs import settings
from training import checkpoint
from training.checkpoint import Checkpoint, Progress
from training.loop import make_optimiser, train
from training.networks.build import make_networks
from training.networks.depth import DepthConfig, make_depth_net
from training.networks.weights import read_state

__all__ = ["forks"]

pytestmark = pytest.mark.fault(Fault.HOSTILE_CHECKPOINT)

HEADROOM = {"RLIMIT_AS": 900 << 20}
"""Bytes that a fork may take beyond what it begins with."""


def load_checkpoint(path: Path) -> Any:
    return checkpoint.load(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": load_checkpoint,
    "encoder": read_state,
    "detector": read_torch_file,
    "raft": _read,  # as Raft.load does, which makes the network first
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", CARRIES_CODE)
def test_code_is_never_run(case: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pt"
    path.write_bytes(CARRIES_CODE[case]())
    with pytest.raises(InstanceMotionError) as error:
        READERS[reader](path)
    assert len(str(error.value).splitlines()) == 1
    assert str(path) in str(error.value)
    assert not Path(CANARY).exists()


def test_the_code_would_run_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for case in ("archive", "raw pickle", "legacy", "eval"):
        (tmp_path / "file.pt").write_bytes(CARRIES_CODE[case]())
        with contextlib.suppress(Exception):  # what they hold besides the code need not make sense
            torch.load(tmp_path / "file.pt", weights_only=False)
        assert Path(CANARY).is_dir(), case
        Path(CANARY).rmdir()


def read_all(words: list[str]) -> int:
    """In a fork: read files with every reader; prints a line for each."""
    torch.set_num_threads(1)
    wrong = 0
    for path in map(Path, words):
        for name, reader in READERS.items():
            try:
                reader(path)
                outcome = "was read"
            except InstanceMotionError as error:
                outcome = "refused" if len(str(error).splitlines()) == 1 else "refused at length"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"
            wrong += outcome != "refused"
            print(f"{path.stem}: {name}: {outcome}", flush=True)
    return min(wrong, 100)


def test_no_reader_makes_room_for_more_than_a_file_holds(forks: Forks, tmp_path: Path) -> None:
    """In a process that may take 0.9 GB: enough for every file, too little for what they claim."""
    paths = []
    for number, (case, make) in enumerate(CLAIMS_MORE.items()):
        paths.append(tmp_path / f"{number:02d} {case}.pt")
        paths[-1].write_bytes(make())
        assert paths[-1].stat().st_size < 4 << 20
    running = forks.run(*paths, function="tests.faults.test_checkpoints:read_all", limits=HEADROOM)
    assert running.code == 0, running.said
    lines = running.said.splitlines()
    assert len(lines) == len(paths) * len(READERS)
    assert not [line for line in lines if not line.endswith(": refused")]


def test_without_a_look_first_they_would_take_it(forks: Forks, tmp_path: Path) -> None:
    for case in ("packed", "one number repeated, and copied"):
        path = tmp_path / "file.pt"
        path.write_bytes(CLAIMS_MORE[case]())
        naive = forks.run(path, function="tests.faults.test_checkpoints:read_naively", limits=HEADROOM)
        assert naive.code == 3, (case, naive.said)


def read_naively(words: list[str]) -> int:
    """In a fork."""
    try:
        torch.load(words[0], weights_only=True)
    except (RuntimeError, MemoryError) as error:
        print(error)
        return 3 if "memory" in str(error) or "alloc" in str(error) else 2
    return 0


def test_paths_in_an_archive_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    absolute = tmp_path / "outside"
    for name in ("../outside", str(absolute), "archive/../../outside"):
        path = tmp_path / "below" / "file.pt"
        path.write_bytes(with_part(name))
        try:
            assert read_tensors(path)["a"].shape == (10,)  # such a part is not looked at
        except ValueError as error:
            assert "archive" in str(error)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["below"]


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for name in ("pipe.pt", "zero.pt"):
        for reader in READERS.values():
            with pytest.raises(InstanceMotionError) as error:
                reader(tmp_path / name)
            assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # remembers value number 2147483647: 32 GB of places
        b"\x80\x02cos\nmkdir\nX\x0c\x00\x00\x00CODE_WAS_RUN\x85R.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"",
    ],
)
def test_pickles_of_a_zoo_take_no_room_and_run_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(DetectorError) as error:
        read_pickled_arrays(path)
    assert len(str(error.value).splitlines()) == 1
    assert not Path(CANARY).exists()


# ---------------------------------------------------------------------------- content that does not fit


@pytest.fixture(scope="module")
def trained(street_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(settings(street_shards, steps=1), out, quiet=True, say=lambda line: None)
    return out


def altered(trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run, whose checkpoint has been changed."""
    out = tmp_path / "run"
    out.mkdir()
    content = torch.load(trained / "last.pt", weights_only=True)
    change(content)
    torch.save(content, out / "last.pt")
    (out / "metrics.jsonl").write_bytes((trained / "metrics.jsonl").read_bytes())
    return out


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to(content.get(keys[-1])) if callable(to) else to

    return change


def _config(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        config = json.loads(content["config"])
        _set(*keys, to=to)(config)
        content["config"] = json.dumps(config)

    return change


WEIGHT = "depth.body.encoder.conv1.weight"

DO_NOT_FIT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "doubles": (_set("networks", WEIGHT, to=Tensor.double), f"weights {WEIGHT} are torch.float64, expected"),
    "whole numbers": (_set("networks", WEIGHT, to=Tensor.long), f"weights {WEIGHT} are torch.int64"),
    "complex numbers": (
        _set("networks", WEIGHT, to=lambda w: w + 0j),
        f"weights {WEIGHT} are torch.complex64",
    ),
    "sparse": (_set("networks", WEIGHT, to=Tensor.to_sparse), "is damaged, or holds code besides tensors"),
    "on no device": (
        _set("networks", WEIGHT, to=lambda w: w.to("meta")),
        "is damaged, or holds code besides",
    ),
    "one number repeated": (
        _set("networks", WEIGHT, to=lambda w: torch.zeros(1).expand(w.shape)),
        "a tensor in it claims more than it holds",
    ),
    "averaged are others": (
        _set("averaged", WEIGHT, to=lambda w: w[:1].clone()),
        "averaged: weights depth.body.encoder.conv1.weight are (1,",
    ),
    "a weight without a name": (
        _set("networks", 3, to=torch.zeros(1)),
        "networks does not hold what it should",
    ),
    "momentum of another shape": (
        _set("optimiser", "state", 0, "exp_avg", to=torch.zeros(3)),
        "optimiser: what it knows of weight 0 does not fit it",
    ),
    "momentum of another kind": (
        _set("optimiser", "state", 0, "exp_avg", to=Tensor.long),
        "optimiser: what it knows of weight 0 does not fit it",
    ),
    "no momentum": (
        _set("optimiser", "state", 0, to={"step": torch.tensor(1.0)}),
        "optimiser: what it knows of weight 0 does not fit it",
    ),
    "a weight that is not there": (
        _set("optimiser", "state", 10**30, to={}),
        "optimiser: what it knows of weight a int does not fit it",
    ),
    "one group": (_set("optimiser", "param_groups", to=lambda g: g[:1]), "optimiser: expected 2 groups"),
    "groups that are none": (
        _set("optimiser", "param_groups", to=[1, 2]),
        "optimiser: lr of group 0 is another",
    ),
    "other weights in a group": (
        _set("optimiser", "param_groups", 0, "params", to=[0, 0]),
        "optimiser: params of group 0 is another",
    ),
    "gradients upside down": (
        _set("optimiser", "param_groups", 0, "maximize", to=True),
        "optimiser: maximize of group 0 is another",
    ),
    "a rate that is no number": (
        _set("optimiser", "param_groups", 0, "lr", to=float("nan")),
        "optimiser: lr of group 0 is another",
    ),
    "no groups": (_set("optimiser", to={}), "optimiser: expected 2 groups and their state"),
    "a random state of another kind": (_set("random", "cpu", to=torch.zeros(9)), "random: "),
    "a random state too short": (_set("random", "cpu", to=torch.zeros(9, dtype=torch.uint8)), "random: "),
    "steps before the first": (_set("progress", "step", to=-5), "progress.step is -5, expected a count"),
    "an endless epoch": (_set("progress", "epoch", to=10**30), "progress.epoch is 1"),
    "a batch behind the last": (_set("progress", "epoch_step", to=5), "batch 5 of an epoch of 5 batches"),
    "a format without end": (_set("format", to=nested(3)), "is a tuple version 2, expected"),
    "a version without end": (_set("version", to=10**30), "version a int, expected"),
    "a version that fills a page": (_set("version", to=10**5000), "is damaged, or holds code besides"),
    "a key that is no text": (_set(nested(3), to=1), "'a tuple' is unknown; it is damaged"),
    "a setting not there": (_config("steeps", to=1), "unknown key 'steeps'"),
    "a setting of any length": (_config("device", to=["x"] * 10**6), "device: expected str"),
}


@pytest.mark.parametrize("case", DO_NOT_FIT)
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(
    case: str, trained: Path, street_shards: Path, tmp_path: Path
) -> None:
    change, message = DO_NOT_FIT[case]
    out = altered(trained, tmp_path, change)
    before = (out / "last.pt").read_bytes()
    with pytest.raises((TrainingError, ConfigError)) as error:
        train(settings(street_shards, steps=2), out, resume=True, quiet=True, say=lambda line: None)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600 + len(str(out))
    assert (out / "last.pt").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["last.pt", "metrics.jsonl"]


def test_an_unchanged_copy_is_gone_on_from(trained: Path, street_shards: Path, tmp_path: Path) -> None:
    out = altered(trained, tmp_path, lambda content: None)
    train(settings(street_shards, steps=2), out, resume=True, quiet=True, say=lambda line: None)
    assert checkpoint.load(out / "last.pt").progress.step == 2


WIDE = {
    "channels": (_config("networks", "depth", "width", to=10**30), "width must lie in (0, 4]"),
    "channels, not finite": (
        _config("networks", "depth", "width", to=float("nan")),
        "width must lie in (0, 4]",
    ),
    "crops": (_config("objective", "motion", "crop_px", to=16 * 10**6), "crop_px must be at most 1024"),
    "reach": (_config("networks", "objects", "reach", to=10**6), "reach must lie in 1..8"),
    "upsampling": (_config("objective", "motion", "alpha", to=10**6), "alpha must be at most 16"),
    "frames": (_config("data", "size", to=[10**6, 10**6]), "size must be width and height in pixels, up to"),
    "steps of alignment": (
        _config("objective", "motion", "alignment", "camera_steps", to=10**12),
        "camera_steps must be at most 1000",
    ),
    "depths of alignment": (
        _config("objective", "motion", "alignment", "static_depths", to=[1.0] * 10**5),
        "static_depths must be 1000 or fewer",
    ),
}


@pytest.mark.parametrize("case", WIDE)
def test_a_configuration_without_measure_is_refused_when_it_is_read(
    case: str, trained: Path, tmp_path: Path
) -> None:
    change, message = WIDE[case]
    out = altered(trained, tmp_path, change)
    with pytest.raises(TrainingError) as error:
        checkpoint.load(out / "last.pt")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_no_command_makes_room_for_the_networks_of_a_configuration(
    trained: Path, street_shards: Path, forks: Forks, tmp_path: Path
) -> None:
    """There is room for the networks whose weights are there, not for those that are named."""
    wide = _config("networks", "depth", to={"architecture": "resnet50", "width": 4.0})
    run = altered(trained, tmp_path, wide)
    for words in (
        ("predict", run, street_shards, tmp_path / "out", "--quiet"),
        ("export", run, tmp_path / "onnx", "--size", "96", "64"),
    ):
        running = forks.run(*words, limits=HEADROOM)
        assert running.code == 1, running.said
        assert "its networks are others than the configuration's" in running.error
    naive = forks.run("resnet50", function="tests.faults.test_checkpoints:make_wide", limits=HEADROOM)
    assert naive.code == 3, naive.said
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def make_wide(words: list[str]) -> int:
    """In a fork: what such a configuration names."""
    try:
        make_depth_net(DepthConfig(architecture="resnet50", width=4.0))
    except (RuntimeError, MemoryError):
        return 3
    return 0


def test_weights_that_are_no_numbers_are_no_predictions(
    trained: Path, street_shards: Path, tmp_path: Path
) -> None:
    run = altered(trained, tmp_path, lambda content: content["averaged"][WEIGHT].fill_(float("nan")))
    with pytest.raises(InstanceMotionError, match="inverse depth must be finite and above 0"):
        predict(run, street_shards, tmp_path / "out", include=("test_0001",), quiet=True)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_weights_to_begin_with_are_checked_alike(street_shards: Path, forks: Forks, tmp_path: Path) -> None:
    """train --init-from a file that packs a gigabyte."""
    path, out = tmp_path / "packed.pt", tmp_path / "run"
    path.write_bytes(CLAIMS_MORE["packed"]())
    words = ("train", street_shards, "--out", out, "--init-from", path, "--quiet", "--data.workers", "0")
    running = forks.run(*words, "--data.batch-size", "1", "--device", "cpu", limits=HEADROOM)
    assert running.code == 1
    assert running.error.startswith(
        f"{path} is damaged or not a checkpoint ('archive/data.pkl' in it is packed"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"step": "x", "kind": "train"}\n',
        '{"kind": "train"}\n',
        "3\n",
        '{"step": 0, "kind": 3}\n',
        "\xff\xfe",
    ],
)
def test_metrics_that_are_none_are_one_line(
    text: str, trained: Path, street_shards: Path, tmp_path: Path
) -> None:
    out = altered(trained, tmp_path, lambda content: None)
    (out / "metrics.jsonl").write_bytes(text.encode("latin1"))
    with pytest.raises(TrainingError, match=r"metrics\.jsonl holds other rows than a training's"):
        train(settings(street_shards, steps=2), out, resume=True, quiet=True, say=lambda line: None)


def test_weights_that_share_a_storage_are_read_as_they_are(tmp_path: Path) -> None:
    """Allowed, as torch.save writes views; each still gets its own numbers."""
    both = torch.arange(10.0)
    path = tmp_path / "views.pt"
    torch.save({"a": both[:5], "b": both[2:7]}, path)
    found = read_state(path)
    assert found["a"].tolist() == [0, 1, 2, 3, 4]
    assert found["b"].tolist() == [2, 3, 4, 5, 6]


def test_a_checkpoint_whose_optimiser_never_stepped_is_restored(street_shards: Path, tmp_path: Path) -> None:
    config = settings(street_shards)
    networks = make_networks(config.networks, "crop", config.objective.motion.crop_px)
    optimiser = make_optimiser(networks, config.optimise)
    fresh = Checkpoint(
        config=config,
        data=None,
        processes=None,
        networks=networks.state_dict(),
        averaged=None,
        optimiser=optimiser.state_dict(),
        progress=Progress(),
        random=checkpoint.random_states(),
    )
    checkpoint.save(tmp_path / "last.pt", fresh)
    found = checkpoint.load(tmp_path / "last.pt")
    checkpoint.restore_optimiser(make_optimiser(networks, config.optimise), found.optimiser, "here")
    assert to_dict(replace(config, steps=9)) != to_dict(found.config)
