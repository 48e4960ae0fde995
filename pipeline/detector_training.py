"""Training the bundled Mask R-CNN on frames with true instance masks.

A plain loop over crops at about the size at which the network will meet its frames, most
of them placed on an object: small objects are what is hard, most of a street is empty,
and many cheap steps on crops teach more than few on whole frames. What is kept is a
running mean of the weights.

Everything random in step n follows from (seed, n), so a run that was killed and resumed
ends with the same bytes as one that was not (same machine, same number of threads).
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from pipeline.detection import Target, training_losses
from pipeline.detector_weights import read_torch_file
from pipeline.errors import ConfigError, DetectorError
from pipeline.progress import Bar


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and on what views to train."""

    steps: int = 3200
    """Steps in all."""
    batch_size: int = 4
    """Views a step."""
    short_side: int = 320
    """Size of the frames' short side that the network will meet, pixels."""
    zoom: float = 1.45
    """Views are at most this many times larger or smaller than that."""
    crop: tuple[int, int] = (384, 192)
    """Width and height of a view, network pixels."""
    focus: float = 0.85
    """Share of views that are placed on an object."""
    whole_share: float = 0.25
    """Share of steps that take half as many views, of whole frames: crops cut large objects."""
    min_area: int = 10
    """Objects of which a view shows less than this are background, pixels of the frame."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate: linear warm-up, then a cosine to zero."""
    warmup_steps: int = 100
    """Steps until the peak."""
    weight_decay: float = 0.01
    """AdamW's."""
    max_gradient: float = 5.0
    """Longer gradients are shortened to this norm."""
    mean_decay: float = 0.998
    """Of the running mean of the weights, a step."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(f"steps and batch_size must be at least 1, got {self.steps}, {self.batch_size}")
        if self.zoom < 1:
            raise ConfigError(f"zoom must be at least 1, got {self.zoom}")
        if not (0 <= self.focus <= 1 and 0 <= self.whole_share <= 1):
            raise ConfigError(
                f"focus and whole_share must lie in [0, 1], got {self.focus}, {self.whole_share}"
            )


@dataclass(frozen=True)
class Sample:
    """One frame with its truth.

    image:   (H, W, 3) uint8 RGB
    ids:     (H, W) integer, 0 = no object
    classes: object id -> the network's class
    """

    image: np.ndarray
    ids: np.ndarray
    classes: Mapping[int, int]


@dataclass
class TrainingState:
    """All that a resumed run needs; `mean` is the running mean of the weights and buffers."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    mean: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0


def train(
    network: nn.Module,
    samples: Sequence[Sample],
    config: TrainingConfig,
    checkpoint: Path,
    on_checkpoint: Callable[[int, dict[str, Tensor]], None] = lambda step, mean: None,
    checkpoint_every: int = 100,
) -> dict[str, Tensor]:
    """Train a network, resuming from `checkpoint` if it exists.

    Ctrl-C finishes the step in hand, writes the checkpoint and raises KeyboardInterrupt;
    a second one does not wait.

    Args:
        network: untrained, on the CPU or a GPU
        checkpoint: file that is replaced, whole, every `checkpoint_every` steps
        on_checkpoint: called just before, with the step and the mean weights

    Returns:
        The running mean of the weights and buffers, by name.

    Raises:
        DetectorError: no samples; a loss is not finite; the checkpoint is of another run.
    """
    if not samples:
        raise DetectorError("no training frames; render streets first or name another folder")
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    state = TrainingState(network, optimizer)
    state.mean = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if checkpoint.exists():
        _resume(state, config, checkpoint)

    network.train()
    with _interrupts_held() as interrupted, Bar(
        total=config.steps, initial=state.step, unit="step", desc="train", smoothing=0.05
    ) as progress:  # fmt: skip
        while state.step < config.steps:
            losses = training_step(state, samples, config)
            progress.update()
            progress.set_postfix(
                {name.removeprefix("loss_"): f"{value:.3f}" for name, value in losses.items()}
            )
            due = state.step % checkpoint_every == 0 or state.step == config.steps
            if due:  # before saving: what is interrupted here is done again after a restart
                on_checkpoint(state.step, state.mean)
            if due or interrupted():
                _save(state, config, checkpoint)
            if interrupted():
                raise KeyboardInterrupt
    return state.mean


def training_step(
    state: TrainingState, samples: Sequence[Sample], config: TrainingConfig
) -> dict[str, float]:
    """One step of the optimiser and of the running mean; gives the losses by name."""
    rng = np.random.default_rng((config.seed, state.step))
    # All views of a step have about one size: a batch is padded to its largest.
    whole = rng.random() < config.whole_share
    count = max(1, config.batch_size // 2) if whole else config.batch_size
    draw = whole_frame if whole else draw_view
    views = [draw(samples[k], config, rng) for k in rng.integers(len(samples), size=count).tolist()]
    device = next(state.network.parameters()).device

    with torch.random.fork_rng():  # detectron2 samples anchors and boxes
        torch.manual_seed(int(rng.integers(2**31)))
        losses = training_losses(
            state.network,
            [image.to(device) for image, _ in views],
            [Target(target.classes.to(device), target.masks.to(device)) for _, target in views],
        )
    for name, loss in losses.items():
        if not torch.isfinite(loss):
            raise DetectorError(f"{name} is {loss.item()} at step {state.step}; lower the learning rate")

    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * learning_rate_factor(state.step, config)
    state.optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), config.max_gradient)
    state.optimizer.step()
    state.step += 1
    _update_mean(state, config)
    return {name: loss.item() for name, loss in losses.items()}


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


# ----------------------------------------------------------------------------- views


def whole_frame(sample: Sample, config: TrainingConfig, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """A whole frame at the usual size or somewhat smaller."""
    height, width = sample.ids.shape
    scale = config.short_side / min(height, width) * config.zoom ** rng.uniform(-1, 0)
    return _view(sample, (0, 0, width, height), scale, config, rng)


def draw_view(sample: Sample, config: TrainingConfig, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """A crop at about the usual size, most often with some object in it."""
    height, width = sample.ids.shape
    scale = config.short_side / min(height, width) * config.zoom ** rng.uniform(-1, 1)
    crop = np.minimum([width, height], np.array(config.crop) / scale)
    corner = rng.uniform(0, [width, height] - crop)
    classes = sorted({sample.classes[i] for i in np.unique(sample.ids).tolist() if i in sample.classes})
    if classes and rng.random() < config.focus:
        wanted = rng.choice(classes)  # a rare class is looked at as often as a common one
        ids = [i for i in np.unique(sample.ids).tolist() if sample.classes.get(i) == wanted]
        ys, xs = np.nonzero(sample.ids == rng.choice(ids))
        pixel = rng.integers(len(ys))
        corner = np.clip([xs[pixel], ys[pixel]] - crop * rng.uniform(0, 1, 2), 0, [width, height] - crop)
    return _view(sample, (*corner, *(corner + crop)), scale, config, rng)


def _view(
    sample: Sample,
    window: tuple[float, float, float, float],
    scale: float,
    config: TrainingConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Target]:
    """A window (x0, y0, x1, y1; pixel edges from the top-left corner) of a frame, resized,
    perhaps mirrored, its colours changed."""
    x0, y0, x1, y1 = window
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    picture = Image.fromarray(sample.image).resize(size, Image.Resampling.BILINEAR, box=window)
    columns = (x0 + (np.arange(size[0]) + 0.5) * (x1 - x0) / size[0]).astype(int)
    rows = (y0 + (np.arange(size[1]) + 0.5) * (y1 - y0) / size[1]).astype(int)
    ids = sample.ids[rows][:, columns]
    image = _change_colours(picture, rng)
    if rng.random() < 0.5:
        image, ids = image[:, ::-1], ids[:, ::-1]

    least = config.min_area * scale**2
    values, areas = np.unique(ids, return_counts=True)
    kept = [v for v, a in zip(values.tolist(), areas, strict=True) if v in sample.classes and a >= least]
    masks = np.stack([ids == v for v in kept]) if kept else np.zeros((0, *ids.shape), bool)
    classes = torch.tensor([sample.classes[v] for v in kept], dtype=torch.int64)
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return tensor, Target(classes, torch.from_numpy(np.ascontiguousarray(masks)))


def _change_colours(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Other light, other cameras: (H, W, 3) float32 in [0, 255]."""
    if rng.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    image = np.asarray(picture, np.float32) / 255
    image = image ** np.float32(np.exp(rng.uniform(-0.3, 0.3)))
    image *= rng.uniform(0.9, 1.1, 3).astype(np.float32)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.3, 1.3))
    middle = image.mean()
    image = (image - middle) * np.float32(np.exp(rng.uniform(-0.3, 0.3))) + middle
    image += np.float32(rng.uniform(-0.08, 0.08))
    if rng.random() < 0.3:
        image += rng.normal(0, rng.uniform(0.005, 0.03), image.shape).astype(np.float32)
    return (image.clip(0, 1) * 255).astype(np.float32)


# ----------------------------------------------------------------------------- state


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in half precision, whole or not at all."""
    halves = {
        name: value.cpu().half() if value.is_floating_point() else value.cpu()
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }
    _write({"model": halves}, path)


def _update_mean(state: TrainingState, config: TrainingConfig) -> None:
    decay = min(config.mean_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for name, value in state.network.state_dict().items():
            if value.is_floating_point():
                state.mean[name].lerp_(value, 1 - decay)
            else:
                state.mean[name].copy_(value)


def _save(state: TrainingState, config: TrainingConfig, path: Path) -> None:
    _write(
        {
            "config": asdict(config),
            "step": state.step,
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "mean": state.mean,
        },
        path,
    )


def _resume(state: TrainingState, config: TrainingConfig, path: Path) -> None:
    saved = read_torch_file(path)
    if saved.get("config") != asdict(config):
        raise DetectorError(
            f"{path} belongs to a run with another configuration; delete it, or give its settings again"
        )
    state.network.load_state_dict(saved["network"])
    state.optimizer.load_state_dict(saved["optimizer"])
    for name, value in saved["mean"].items():
        state.mean[name].copy_(value)
    state.step = saved["step"]


def _write(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back, so that no step ends half way; gives a function that asks for it."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
