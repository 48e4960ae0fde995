"""What is in a shard set, and how two masks layers of it differ. Numbers only; pictures are drawn in `overlay`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards.manifest import ClipEntry
from pipeline.shards.reader import ShardSet, locate
from pipeline.shards.verify import layers


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One masks layer.

    instances_per_frame: by class, only classes that occur
    empty_frames:        frames without an instance
    match_rate:          share of instances, after each clip's first frame, that are directly
                         matched with one of the frame before
    track_frames:        10th, 50th and 90th percentile and maximum of frames per track
    """

    settings: dict[str, object]
    instances: int
    instances_per_frame: dict[str, float]
    empty_frames: int
    tracks: int
    track_frames: tuple[float, float, float, float]
    match_rate: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole shard set. bytes_per_frame: by layer, size on disk over all frames."""

    clips: int
    frames: int
    size: tuple[int, int]
    duration_s: float
    static_frames: int
    raw_detections: int
    quarantine: int
    bytes_per_frame: dict[str, float]
    masks: dict[str, LayerSummary]

    def table(self) -> str:
        """The summary as text."""
        rows = [
            (
                "clips",
                f"{self.clips}" + (f" ({self.quarantine} more in quarantine)" if self.quarantine else ""),
            ),
            ("frames", f"{self.frames} of {self.size[0]}x{self.size[1]}, {self.duration_s:.1f} s"),
            ("static frames", f"{self.static_frames}"),
            ("raw detections", f"{self.raw_detections} ({self.raw_detections / self.frames:.1f} a frame)"),
            (
                "bytes a frame",
                ", ".join(f"{layer} {size:,.0f}" for layer, size in self.bytes_per_frame.items()),
            ),
        ]
        for name, layer in self.masks.items():
            per_class = ", ".join(f"{cls} {mean:.2f}" for cls, mean in layer.instances_per_frame.items())
            low, median, high, longest = layer.track_frames
            rows += [
                (f"masks {name}", f"{layer.instances} instances ({per_class or 'none'} a frame)"),
                ("  frames without", f"{layer.empty_frames} ({layer.empty_frames / self.frames:.0%})"),
                ("  match rate", f"{layer.match_rate:.3f}"),
                ("  tracks", f"{layer.tracks}, frames each: median {median:.0f}, 10-90 % {low:.0f}-{high:.0f}, "
                             f"longest {longest:.0f}"),
            ]  # fmt: skip
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """How layer `new` differs from layer `old`: counts of both, and what changed.

    settings:       settings that differ, [old, new]
    changed_frames: frames whose label maps differ in any pixel, but for label numbers
    """

    old: str
    new: str
    settings: dict[str, tuple[str, str]]
    frames: int
    changed_frames: int
    instances: tuple[int, int]
    pairs: tuple[int, int]
    tracks: tuple[int, int]
    covered: tuple[float, float]

    def table(self) -> str:
        rows = [("", self.old, self.new, "change")]
        for name, pair in (
            ("instances", self.instances),
            ("matched pairs", self.pairs),
            ("tracks", self.tracks),
        ):
            rows.append((name, str(pair[0]), str(pair[1]), f"{pair[1] - pair[0]:+d}"))
        old, new = self.covered
        rows.append(("pixels covered", f"{old:.2%}", f"{new:.2%}", f"{new - old:+.2%}"))
        rows += [(name, before, after, "") for name, (before, after) in self.settings.items()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}".rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"{self.changed_frames} of {self.frames} frames changed"])


def summarise(shards: ShardSet) -> Summary:
    """Read all tables of a shard set, no images."""
    manifest = shards.manifest
    frames = sum(clip.frames for clip in manifest.clips)
    times = [shards.timestamps_s(clip) for clip in manifest.clips]
    indices = sorted({index for clip in manifest.clips for index, _, _ in clip.files})
    return Summary(
        clips=len(manifest.clips),
        frames=frames,
        size=manifest.size,
        duration_s=float(sum(each[-1] - each[0] for each in times)),
        static_frames=sum(int(shards.frames_file(index).static.sum()) for index in indices),
        raw_detections=sum(shards.evidence_file(index).detection_count for index in indices),
        quarantine=len(manifest.quarantine),
        bytes_per_frame={
            layer: sum(entry.bytes for entry in files.values()) / frames
            for layer, files in layers(shards).items()
        },
        masks={name: _summarise_layer(shards, name, frames) for name in sorted(manifest.masks)},
    )


def compare_layers(shards: ShardSet, old: str, new: str) -> LayerDifference:
    """Count what differs between two masks layers of one set."""
    settings = {name: shards.masks_entry(name).config for name in (old, new)}
    totals = {name: Counter[str]() for name in (old, new)}
    changed = frames = 0
    for clip in shards.manifest.clips:
        tracks = {name: set[int]() for name in (old, new)}
        for frame in range(clip.frames):
            maps = {}
            for name in (old, new):
                maps[name] = shards.labels(name, clip, frame)
                instances = shards.instances(name, clip, frame)
                totals[name]["instances"] += len(instances)
                totals[name]["pairs"] += len(shards.pairs(name, clip, frame))
                totals[name]["covered"] += int((maps[name] > 0).sum())
                tracks[name].update(instances.track.tolist())
            changed += not _same_regions(maps[old], maps[new])
            frames += 1
        for name in (old, new):
            totals[name]["tracks"] += len(tracks[name])
    pixels = frames * shards.manifest.size[0] * shards.manifest.size[1]
    differing = {
        name: (_shown(settings[old].get(name)), _shown(settings[new].get(name)))
        for name in sorted(settings[old].keys() | settings[new].keys())
        if settings[old].get(name) != settings[new].get(name)
    }
    return LayerDifference(
        old=old,
        new=new,
        settings=differing,
        frames=frames,
        changed_frames=changed,
        instances=(totals[old]["instances"], totals[new]["instances"]),
        pairs=(totals[old]["pairs"], totals[new]["pairs"]),
        tracks=(totals[old]["tracks"], totals[new]["tracks"]),
        covered=(totals[old]["covered"] / pixels, totals[new]["covered"] / pixels),
    )


def class_names(shards: ShardSet, layer: str, clip: ClipEntry, frame: int) -> list[str]:
    """The class of every instance of a frame, in their order.

    Raises:
        ShardError: the set knows no such class: the table is damaged.
    """
    classes = shards.manifest.classes
    indices = shards.instances(layer, clip, frame).class_index.tolist()
    if any(index >= len(classes) for index in indices):
        file, row = locate(clip, frame)
        raise ShardError(
            f"{shards.masks_file(layer, file).path}: row {row}: class {max(indices)} of {len(classes)}; "
            "the file is damaged: make the layer again with `instance-motion remask`"
        )
    return [classes[index] for index in indices]


def _summarise_layer(shards: ShardSet, name: str, frames: int) -> LayerSummary:
    per_class: Counter[str] = Counter()
    lengths: list[int] = []
    instances = empty = matched = matchable = 0
    for clip in shards.manifest.clips:
        clip_tracks: Counter[int] = Counter()
        for frame in range(clip.frames):
            found = shards.instances(name, clip, frame)
            instances += len(found)
            empty += not len(found)
            per_class.update(class_names(shards, name, clip, frame))
            clip_tracks.update(found.track.tolist())
            if frame:
                matchable += len(found)
                matched += len(shards.pairs(name, clip, frame))
        lengths += clip_tracks.values()
    quantiles = np.percentile(lengths, [10, 50, 90, 100]) if lengths else np.zeros(4)
    low, median, high, longest = map(float, quantiles)
    return LayerSummary(
        settings=shards.masks_entry(name).config,
        instances=instances,
        instances_per_frame={cls: count / frames for cls, count in sorted(per_class.items())},
        empty_frames=empty,
        tracks=len(lengths),
        track_frames=(low, median, high, longest),
        match_rate=matched / matchable if matchable else 0.0,
    )


def _same_regions(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two label maps cut the image alike, whatever the numbers of their labels."""
    if not np.array_equal(a == 0, b == 0):
        return False
    pairs = np.unique(a.astype(np.int64) * (int(b.max()) + 1) + b)
    return len(pairs) == len(np.unique(a)) == len(np.unique(b))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
