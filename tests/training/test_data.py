"""Windows, matched labels, and an order that neither workers nor interruptions change."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, ShardError
from pipeline.shards.reader import ShardSet
from tests.faults.table import Fault
from tests.training.shardsets import CAR, PERSON, SIZE, K, image_of, tracks_of, write_set
from training.augment import Augmentation, AugmentConfig
from training.batches import Batch, StoredWindow, assemble, collate
from training.data import DataConfig, ShardSource, WindowDataset, make_loader
from training.data_benchmark import sample_benchmark, throughput
from training.sampler import Sampler, SamplerState, apportion, permutation
from training.windows import choose_clips, held_out_by_hash

CLIPS = {"10": 12, "2": 6, "1": 5}  # the alphabet would sort both clips and frames wrongly


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data") / "drives", CLIPS)


def config_of(*folders: Path, **changes) -> DataConfig:
    """Two windows a batch, nothing varied, read in this process."""
    plain = DataConfig(
        shards=tuple(ShardSource(folder) for folder in folders),
        augment=AugmentConfig.none(),
        batch_size=2,
        workers=0,
    )
    return replace(plain, **changes)


def stored(config: DataConfig) -> list[Batch]:
    """Every window in stored order."""
    return list(make_loader(config, split="all", ordered=True))


def assert_equal_batches(have: Iterable[Batch], want: Iterable[Batch]) -> None:
    for a, b in zip(have, want, strict=True):
        assert a.names == b.names
        for name in ("images", "K", "labels", "classes", "dt_s"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


# ------------------------------------------------------------------------------- one batch


def test_a_batch_holds_what_its_docstring_says(shards: Path) -> None:
    batch = stored(config_of(shards))[0]
    W, H = SIZE
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, 3, H, W), torch.float32)
    assert (batch.K.shape, batch.K.dtype) == ((2, 3, 3), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((2, 2, 2, H, W), torch.int16)
    assert (batch.classes.shape, batch.classes.dtype) == ((2, 2, 2), torch.int64)
    assert (batch.dt_s.shape, batch.dt_s.dtype) == ((2, 2), torch.float32)
    assert batch.names == ("drives/10:0", "drives/10:1")
    assert len(batch) == 2
    np.testing.assert_array_equal(batch.K[0].numpy(), K.astype(np.float32))


def test_without_augmentation_images_are_the_stored_ones_to_the_last_bit(shards: Path) -> None:
    for batch in stored(config_of(shards)):
        for row, name in enumerate(batch.names):
            clip, first = name.removeprefix("drives/").split(":")
            for step in range(3):
                expected = image_of(list(CLIPS).index(clip), int(first) + step)
                found = batch.images[row, step].permute(1, 2, 0)
                assert torch.equal(found, torch.from_numpy(expected).float() / 255)


def test_frames_and_clips_come_in_the_order_of_their_numbers(shards: Path) -> None:
    """Released code: files paired in the order 1, 10, 11, 2, ..."""
    names = [name for batch in stored(config_of(shards)) for name in batch.names]
    assert names == [f"drives/{clip}:{first}" for clip, count in CLIPS.items() for first in range(count - 2)]


def test_a_slot_is_one_object_in_both_frames_though_its_labels_differ(shards: Path) -> None:
    for batch in stored(config_of(shards)):
        for row, name in enumerate(batch.names):
            first = int(name.split(":")[1])
            for pair in (0, 1):
                assert batch.classes[row, pair].tolist() == [CAR, PERSON]
                for side in (0, 1):
                    tracks = tracks_of(first + pair + side).astype(np.int16)
                    tracks[tracks == 3] = -1  # has no match in the other frame
                    np.testing.assert_array_equal(batch.labels[row, pair, side].numpy(), tracks)


def test_other_strides_match_by_track(shards: Path) -> None:
    """Track 3 is seen every second frame: matched at stride 2, never at 1 or 3."""
    for stride, expected in ((2, [CAR, PERSON, CAR]), (3, [CAR, PERSON])):
        batch = stored(config_of(shards, strides=(stride,), include=("10",)))[0]
        assert batch.names[0] == "drives/10:0"
        assert [index for index in batch.classes[0, 0].tolist() if index >= 0] == expected
        earlier, later = batch.labels[0, 0].numpy()
        np.testing.assert_array_equal(earlier == 1, tracks_of(0) == 1)
        np.testing.assert_array_equal(later == 1, tracks_of(stride) == 1)
        np.testing.assert_array_equal(earlier == (3 if stride == 2 else -1), tracks_of(0) == 3)
        assert torch.equal(batch.images[0, 1, 0], torch.full(SIZE[::-1], 10.0 * stride / 255))
    counts = {stride: len(WindowDataset(config_of(shards, strides=(stride,)))) for stride in (1, 2, 3)}
    assert counts == {1: 10 + 4 + 3, 2: 8 + 2 + 1, 3: 6 + 0 + 0}
    assert len(WindowDataset(config_of(shards, strides=(1, 2, 3)))) == sum(counts.values())


def test_time_between_frames_is_measured_not_assumed(shards: Path) -> None:
    batches = stored(config_of(shards, include=("10",)))
    dt_s = torch.cat([batch.dt_s for batch in batches])
    assert torch.allclose(dt_s[2], torch.tensor([0.1, 0.11]))  # the step from frame 3 to 4 is late
    assert torch.allclose(dt_s[0], torch.tensor([0.1, 0.1]))


def test_the_largest_instances_are_kept_and_the_rest_is_not_background(shards: Path) -> None:
    batch = stored(config_of(shards, max_instances=1))[0]
    assert batch.classes.tolist() == [[[CAR]] * 2] * 2
    person = tracks_of(0) == 2
    assert batch.labels[0, 0, 0].numpy()[person].tolist() == [-1] * person.sum()
    none = stored(config_of(shards, max_instances=0))[0]
    assert none.classes.shape == (2, 2, 0)
    assert none.labels.max() == 0


def window_of(shards: Path, window: int = 0) -> StoredWindow:
    return WindowDataset(config_of(shards)).read(0, window)


def test_an_instance_that_the_crop_cuts_away_in_one_frame_is_unmatched(shards: Path) -> None:
    # Track 1 begins at column 4 in frame 0 and at 5 in frame 1: a crop of five columns loses it.
    change = Augmentation(stored=SIZE, resized=SIZE, size=(5, 32), offset=(0, 0))
    sample = assemble(window_of(shards), change)
    assert [len(each) for each in sample.classes] == [0, 0]
    assert sample.labels[0, 0].min() == -1
    assert sample.labels.max() == 0
    wider = Augmentation(stored=SIZE, resized=SIZE, size=(7, 32), offset=(0, 0))
    assert [each.tolist() for each in assemble(window_of(shards), wider).classes] == [[CAR], [CAR]]
    kept = assemble(window_of(shards), wider, min_area=20).classes  # 30, 20 and 10 pixels are left
    assert [each.tolist() for each in kept] == [[CAR], []]


def test_image_and_labels_move_together_when_augmented(shards: Path) -> None:
    """Blue is u + 2 v: it tells for every pixel of a mask where it was stored."""
    change = Augmentation(stored=SIZE, resized=(60, 40), size=(50, 32), offset=(4, 5), flip=True)
    sample = assemble(window_of(shards), change)
    back = np.linalg.inv(change.pixel_map())
    for pair in (0, 1):
        for side in (0, 1):
            v, u = np.nonzero(sample.labels[pair, side] == 1)
            places = back @ np.stack([u, v, np.ones_like(u)])
            blue = sample.images[pair + side, 2, v, u]
            assert np.abs(blue - (places[0] + 2 * places[1])).max() < 1.1
            begin = 4 + pair + side
            assert places[0].min() >= begin - 0.5
            assert places[0].max() <= begin + 13.5


@pytest.mark.fault(Fault.ODD_INPUT)
def test_a_batch_without_instances_has_no_slots(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"a": 4}, size=(20, 2))  # too low for any of the objects
    batch = stored(config_of(folder))[0]
    assert batch.classes.shape == (2, 2, 0)
    assert not batch.labels.any()


@pytest.mark.fault(Fault.ODD_INPUT)
def test_wide_label_maps_give_the_same_batches(shards: Path, tmp_path: Path) -> None:
    wide = write_set(tmp_path / "drives", CLIPS, wide_labels=True)
    assert_equal_batches(stored(config_of(wide)), stored(config_of(shards)))


def test_many_slots_keep_their_numbers() -> None:
    """More than a signed byte holds: 200 instances of one pixel."""
    labels = np.arange(201, dtype=np.uint8).reshape(1, 201)
    matches = np.stack([np.arange(1, 201)] * 2, axis=1)
    window = StoredWindow(
        images=[np.zeros((1, 201, 3), np.uint8)] * 2,
        labels=[labels] * 2,
        matches=[matches],
        classes=[np.zeros(200, np.uint8)] * 2,
        times_s=np.array([0.0, 0.1]),
        K=K,
        name="s/c:0",
    )
    sample = assemble(window, Augmentation(stored=(201, 1), resized=(201, 1), size=(201, 1), offset=(0, 0)))
    batch = collate([sample], (201, 1), 2).unpack()
    assert batch.labels[0, 0, 1, 0].tolist() == list(range(201))


def test_static_steps_are_left_out_on_request(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"a": 10}, static={"a": (5, 6)})
    moving = WindowDataset(config_of(folder))
    assert moving.windows[0].rows[:, 1].tolist() == [0, 1, 2, 6, 7]  # 3, 4 and 5 hold step 5 or 6
    assert moving.windows[0].static == 3
    assert len(WindowDataset(config_of(folder, skip_static=False))) == 8
    # At stride 2 only the step from frame 4 to 6 stands still; from 3 to 5, half of it moves.
    strided = WindowDataset(config_of(folder, strides=(2,)))
    assert strided.windows[0].rows[:, 1].tolist() == [0, 1, 3, 5]


def test_a_data_set_says_what_it_holds(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "drives", {"a": 6, "b": 2, "c": 5}, static={"a": (5,)})
    (summary,) = WindowDataset(config_of(folder)).describe()
    assert str(summary) == (
        "drives: 3 clips, 6 windows (1 static ones left out), 100% with matched instances"
    )
    empty = write_set(tmp_path / "empty", {"a": 4}, size=(20, 2))
    with h5py.File(empty / "masks/default/00000.h5") as file:
        assert file["pair_prev"].size  # listed as pairs, so counted
    assert WindowDataset(config_of(empty)).describe()[0].windows == 2


# ------------------------------------------------------------- order, workers, interruption


@pytest.fixture(scope="module")
def busy(shards: Path) -> DataConfig:
    """Everything random that there is."""
    augment = AugmentConfig(scale=(1.0, 1.5), jitter=0.5)
    return config_of(shards, augment=augment, strides=(1, 2), seed=7)


@pytest.fixture(scope="module")
def expected(busy: DataConfig) -> list[Batch]:
    """Epochs 0 and 1, read in this process."""
    loader = make_loader(busy)
    return [batch for _ in range(2) for batch in loader]


@pytest.mark.fault(Fault.FORK_AND_THREADS)
@pytest.mark.parametrize(
    ("workers", "start"),
    [(1, "fork"), (2, "fork"), (1, "spawn"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_workers_change_nothing(
    busy: DataConfig, expected: list[Batch], workers: int, start: Literal["fork", "spawn"]
) -> None:
    loader = make_loader(replace(busy, workers=workers, start_method=start))
    assert_equal_batches([batch for _ in range(2) for batch in loader], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_saved_state_goes_on_exactly_there(busy: DataConfig, expected: list[Batch], workers: int) -> None:
    config = replace(busy, workers=workers)
    loader = make_loader(config)
    for step, _ in enumerate(loader, start=1):
        if step == 5:
            break  # workers have read ahead; the state has not
    assert loader.state == SamplerState(0, 5)
    resumed = make_loader(config, state=loader.state)
    again = list(resumed)
    assert resumed.state == SamplerState(1, 0)
    assert_equal_batches([*again, *resumed], expected[5:])
    # The interrupted loader itself goes on there as well.
    assert_equal_batches(loader, expected[5 : len(loader)])


def test_an_epoch_differs_from_the_next_and_from_another_seed(
    busy: DataConfig, expected: list[Batch]
) -> None:
    half = len(expected) // 2
    first, second = ([batch.names for batch in part] for part in (expected[:half], expected[half:]))
    assert first != second
    other = [batch.names for batch in make_loader(replace(busy, seed=8))]
    assert other != first
    assert sorted(sum(first, ())) != [*sum(first, ())]


def test_the_same_window_is_augmented_anew_in_each_epoch(shards: Path) -> None:
    config = config_of(shards, include=("1",), batch_size=3, augment=AugmentConfig(scale=(1.0, 2.0)))
    loader = make_loader(config)
    seen = {tuple(K.flatten().tolist()) for _ in range(4) for batch in loader for K in batch.K}
    assert len(seen) == 12


def test_reading_draws_no_number_from_the_global_streams(busy: DataConfig) -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    want = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    list(make_loader(replace(busy, workers=1)))
    assert torch.equal(torch.rand(3), want[0])
    assert (random.random(), np.random.rand()) == want[1:]


def test_two_ranks_see_together_what_one_process_sees_in_batches_twice_as_large(busy: DataConfig) -> None:
    whole = list(make_loader(replace(busy, batch_size=4)))
    halves = [list(make_loader(busy, rank=rank, world=2)) for rank in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == len(whole)
    for batch, *parts in zip(whole, *halves, strict=True):
        for rank, part in enumerate(parts):
            assert part.names == batch.names[rank::2]
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.labels, batch.labels[rank::2])


def test_validation_takes_every_window_once_or_an_even_choice(shards: Path) -> None:
    names = [name for batch in stored(config_of(shards)) for name in batch.names]
    assert len(names) == len(set(names)) == 17
    loader = make_loader(config_of(shards, validation_size=4), split="all", ordered=True)
    few = [batch.names for batch in loader]
    assert few == [("drives/10:0", "drives/10:4"), ("drives/10:8", "drives/2:2")]
    assert [batch.names for batch in loader] == few  # again and again


def test_a_rank_without_a_row_of_the_last_batch_gets_an_empty_one(shards: Path) -> None:
    config = config_of(shards, include=("1",), batch_size=1)  # three windows
    batches = [list(make_loader(config, ordered=True, rank=rank, world=2)) for rank in (0, 1)]
    assert [[len(batch) for batch in part] for part in batches] == [[1, 1], [1, 0]]
    assert batches[1][1].images.shape == (0, 3, 3, *SIZE[::-1])


# ------------------------------------------------------------------------ sets and weights


def test_weights_are_shares_of_samples(shards: Path, tmp_path: Path) -> None:
    small = write_set(tmp_path / "small", {"x": 4})
    config = config_of(shards, small, epoch_size=40, batch_size=4)
    sources = (ShardSource(shards, weight=3.0), ShardSource(small, weight=1.0))
    for _ in range(2):
        names = [name for batch in make_loader(replace(config, shards=sources)) for name in batch.names]
        assert sum(name.startswith("small/") for name in names) == 10
        assert {names.count(f"small/x:{first}") for first in (0, 1)} == {5}


def test_sets_of_different_size_need_one_size(shards: Path, tmp_path: Path) -> None:
    large = write_set(tmp_path / "large", {"x": 4}, size=(96, 64))
    with pytest.raises(ConfigError, match="drives holds frames of 48x32 and .*large of 96x64; give `size`"):
        WindowDataset(config_of(shards, large))
    batches = stored(config_of(shards, large, size=(40, 24)))
    assert {batch.images.shape[-2:] for batch in batches} == {(24, 40)}
    # 96x64 covers 40x24 at 0.4167: 40x27, of which row 1 to 24 are the middle.
    K_large = batches[-1].K[-1].double().numpy()
    expected = [
        [K[0, 0] * 40 / 96, 0, (K[0, 2] + 0.5) * 40 / 96 - 0.5],
        [0, K[1, 1] * 27 / 64, (K[1, 2] + 0.5) * 27 / 64 - 0.5 - 1],
        [0, 0, 1],
    ]
    np.testing.assert_allclose(K_large, expected, rtol=1e-6)


@given(total=st.integers(0, 500), weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_add_up_and_are_right_to_one_sample(total: int, weights: list[float]) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert all(abs(share - total * w / sum(weights)) < 1 for share, w in zip(shares, weights, strict=True))


@given(windows=st.integers(1, 30), epoch_size=st.integers(1, 70), seed=st.integers(0, 5))
def test_over_epochs_every_window_is_seen_equally_often(windows: int, epoch_size: int, seed: int) -> None:
    sampler = Sampler(windows=(windows,), weights=(1.0,), batch_size=1, epoch_size=epoch_size, seed=seed)
    seen = np.zeros(windows, int)
    for epoch in range(6):
        np.add.at(seen, sampler.order(epoch)[:, 1], 1)
        assert seen.max() - seen.min() <= 1
    assert seen.sum() == 6 * epoch_size


def test_orders_are_the_same_on_every_machine() -> None:
    """Pinned: a resumed run must not meet another order after an upgrade of NumPy."""
    assert permutation(8, 0, 1, 2).tolist() == [6, 7, 2, 3, 0, 5, 1, 4]


# ----------------------------------------------------------------------------------- split


def test_splits_cover_all_clips_once() -> None:
    names = [f"city/{index}" for index in range(400)]
    options: dict[str, Any] = {"exclude": ("*/3",), "held_out": ("*/1?",), "validation_share": 0.2}
    train, validation = (choose_clips(names, split=s, **options) for s in ("train", "validation"))
    assert sorted([*train, *validation]) == sorted(set(names) - {"city/3"})
    assert {f"city/1{digit}" for digit in range(10)} <= set(validation)
    assert 0.15 < (len(validation) - 10) / 390 < 0.25
    assert choose_clips(names, include=("*/7", "*/8"), exclude=("*/8",)) == ("city/7",)


def test_a_clip_stays_on_its_side_and_cameras_of_one_drive_go_together() -> None:
    names = [f"2011_09_26/drive_{index:04d}" for index in range(50)]
    sides = [held_out_by_hash(name, 0.3) for name in names]
    assert sides == [held_out_by_hash(f"{name}/image_03", 0.3) for name in names]
    assert [index for index, side in enumerate(sides) if side][:6] == [9, 21, 24, 26, 28, 31]  # pinned
    assert not any(held_out_by_hash(name, 0.0) for name in names)
    more = [held_out_by_hash(name, 0.5) for name in names]
    assert all(larger or not side for side, larger in zip(sides, more, strict=True))


def test_validation_may_come_from_one_of_the_sets(shards: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", {"x": 4})
    config = config_of(shards, other, held_out=("x",))
    names = [name for batch in make_loader(config, split="validation") for name in batch.names]
    assert names == ["other/x:0", "other/x:1"]
    with pytest.raises(ConfigError, match="other: no clip is left for train; look at include"):
        make_loader(config)
    with pytest.raises(ConfigError, match="drives: no clip is left for validation"):
        make_loader(config_of(shards, other), split="validation")


# ---------------------------------------------------------------------------------- errors


def test_a_missing_file_is_an_error_and_never_a_shift(tmp_path: Path) -> None:
    """Released code: one missing flow file pairs all later frames with the wrong masks."""
    folder = write_set(tmp_path / "s", {"a": 12}, file_frames=4)
    whole = stored(config_of(folder))
    (folder / "masks/default/00001.h5").unlink()
    with pytest.raises(ShardError, match=r"masks/default/00001\.h5: expected a regular file"):
        stored(config_of(folder))
    write_set(folder, {"a": 12}, file_frames=4)
    assert_equal_batches(stored(config_of(folder)), whole)


def test_a_missing_final_newline_breaks_nothing(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"a": 4})
    whole = stored(config_of(folder))
    manifest = folder / "shardset.json"
    manifest.write_text(manifest.read_text().rstrip("\n"))
    assert_equal_batches(stored(config_of(folder)), whole)


@pytest.mark.fault(Fault.BIT_ROT)
@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_one_line_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    folder = write_set(tmp_path / "s", {"a": 4})
    path = folder / "frames/00000.h5"
    with h5py.File(path) as file:
        at = file["image_data"].id.get_offset() + 40
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match="image of row 0 is damaged") as caught:
        list(make_loader(config_of(folder, workers=workers)))
    assert "\n" not in str(caught.value)


@pytest.mark.fault(Fault.HOSTILE_SHARD)
def test_matches_of_labels_that_are_not_there_are_refused(shards: Path, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"a": 4}, track_classes={1: 200, 2: PERSON, 3: CAR})
    with pytest.raises(ShardError, match="class 200 .* knows 8"):
        stored(config_of(folder))
    folder = write_set(tmp_path / "t", {"a": 4})
    with h5py.File(folder / "masks/default/00000.h5", "r+") as file:
        file["pair_prev"][0] = 9
    with pytest.raises(ShardError, match="clip a, frame 1: matches label 9 .* has 3 instances"):
        stored(config_of(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1}, "frames must be at least 2, got 1"),
        ({"strides": (1, 1)}, "strides must be different numbers from 1 on"),
        ({"strides": ()}, "strides must be different numbers from 1 on"),
        ({"size": (0, 5)}, "size must be width and height"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"validation_share": 1.0}, r"validation_share must lie in \[0, 1\)"),
        ({"shards": ()}, "no shard set to train on"),
        ({"include": ("nothing",)}, "no clip is left for train; look at include, exclude, held_out"),
        ({"batch_size": 100}, "an epoch of 17 samples is shorter than one batch of 100 x 1"),
        (
            {"strides": (50,)},
            r"drives: no window in 3 clips for train \(0 static ones left out\); look at frames",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(shards: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_loader(config_of(shards, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.fault(Fault.WRONG_VERSION)
def test_a_layer_that_is_not_there_is_named_at_once(shards: Path) -> None:
    config = config_of(shards, shards=(ShardSource(shards, "large"),))
    with pytest.raises(ShardError, match="no masks layer 'large'; there are: default"):
        make_loader(config)


def test_a_shard_source_needs_a_weight() -> None:
    with pytest.raises(ConfigError, match="weight must be a positive number, got 0"):
        ShardSource(Path("x"), weight=0)


# --------------------------------------------------------------- a real build, and its cost


@pytest.mark.fault(Fault.FORK_AND_THREADS)
def test_handles_are_opened_by_who_reads(shards: Path) -> None:
    dataset = WindowDataset(config_of(shards))
    assert not dataset.sets[0]._open  # found the windows and closed again
    dataset.read(0, 0)
    assert dataset.sets[0]._open


def test_the_benchmark_measures_every_part(shards: Path) -> None:
    cost = sample_benchmark(config_of(shards), batches=2)
    assert min(cost.read_s, cost.assemble_s, cost.collate_s, cost.unpack_s) > 0
    assert cost.total_s == pytest.approx(cost.read_s + cost.assemble_s + cost.collate_s + cost.unpack_s)
    assert throughput(config_of(shards), batches=2) > 0


def test_the_stored_set_of_version_1_can_be_trained_on() -> None:
    folder = Path(__file__).parents[1] / "pipeline/shards/stored/v1"
    with ShardSet(folder) as shards:
        expected = sum(max(0, clip.frames - 1) for clip in shards.manifest.clips)
    config = config_of(folder, frames=2, skip_static=False, batch_size=1)
    assert sum(len(batch) for batch in stored(config)) == expected > 0
