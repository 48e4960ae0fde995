"""Depth against truth: Eigen et al. 2014's seven errors, and shares of pixels that are far off.

Sums first, ratios last. An image's prediction is multiplied by ONE scale, median(true) /
median(predicted) over all its valid pixels, whatever region is then looked at: a scale for each
region would hide that objects lie at the wrong depth. Scaled depth is clamped to [1e-3, 80] m for
the seven errors, and left alone for shares of far pixels, which clamping would hide.

A region that has no valid pixel in an image does not enter the mean over images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import numpy as np

from evaluation.figure import Figure

MIN_DEPTH_M, MAX_DEPTH_M = 1e-3, 80.0
ERRORS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25", "d<1.25^2", "d<1.25^3")
UNITS = ("fraction", "m", "m", "log m", "fraction", "fraction", "fraction")
FAR = 2.0
"""A pixel is far off when it is deeper than this many times what it is compared with."""
CONTACT_BAND = 0.1
"""Columns whose lowest pixel is within this share of the mask's height of its bottom touch the ground."""


@dataclass(frozen=True, kw_only=True)
class PixelSums:
    """Sums over pixels; they add up. d, t: predicted (scaled) and true depth, metres.

    abs_rel: |d - t| / t;  sq_rel: (d - t)^2 / t;  square: (d - t)^2;  square_log: (log d - log t)^2
    within1..3: pixels with max(d / t, t / d) < 1.25, 1.25^2, 1.25^3;  signed: (d - t) / t
    """

    pixels: int = 0
    abs_rel: float = 0.0
    sq_rel: float = 0.0
    square: float = 0.0
    square_log: float = 0.0
    within1: int = 0
    within2: int = 0
    within3: int = 0
    signed: float = 0.0

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def errors(self) -> np.ndarray:
        """(7,) the errors named in ERRORS; NaN without pixels."""
        if not self.pixels:
            return np.full(len(ERRORS), np.nan)
        means = np.array(
            [
                self.abs_rel,
                self.sq_rel,
                self.square,
                self.square_log,
                self.within1,
                self.within2,
                self.within3,
            ]
        )
        means /= self.pixels
        means[2:4] = np.sqrt(means[2:4])
        return means

    @property
    def mean_signed(self) -> float:
        """Mean of (d - t) / t: above 0 where predicted too deep."""
        return self.signed / self.pixels if self.pixels else float("nan")


@dataclass(frozen=True, kw_only=True)
class DepthTally:
    """A region over many images: sums of the images' errors, and sums over all their pixels."""

    images: int = 0
    image_errors: tuple[float, ...] = (0.0,) * len(ERRORS)
    pooled: PixelSums = PixelSums()

    def __add__(self, other: DepthTally) -> DepthTally:
        return DepthTally(
            images=self.images + other.images,
            image_errors=tuple(a + b for a, b in zip(self.image_errors, other.image_errors, strict=True)),
            pooled=self.pooled + other.pooled,
        )

    @staticmethod
    def of(sums: PixelSums) -> DepthTally:
        """One image's pixels of a region; nothing if there are none."""
        if not sums.pixels:
            return DepthTally()
        return DepthTally(images=1, image_errors=tuple(sums.errors().tolist()), pooled=sums)

    def image_mean(self) -> np.ndarray:
        """(7,) errors averaged over the images that show the region; NaN if none does."""
        return np.array(self.image_errors) / self.images if self.images else np.full(len(ERRORS), np.nan)


@dataclass(frozen=True, kw_only=True)
class Share:
    """`part` of `whole` pixels; shares add up."""

    part: int = 0
    whole: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(part=self.part + other.part, whole=self.whole + other.whole)

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else float("nan")


def valid_truth(truth_m: np.ndarray, min_m: float = MIN_DEPTH_M, max_m: float = MAX_DEPTH_M) -> np.ndarray:
    """Bool, where min_m < true depth < max_m; sky (inf), holes (0) and NaN are left out."""
    return (truth_m > min_m) & (truth_m < max_m)


def median_scale(depth: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> float:
    """median(true) / median(predicted) over the valid pixels of ONE image; NaN if there are none.

    Args:
        depth, truth_m, valid: (H, W) predicted depth > 0, true depth, bool.
    """
    if depth.shape != truth_m.shape or valid.shape != truth_m.shape or depth.ndim != 2:
        # Images of a batch each have a scale of their own; one for all of them is an error we know of.
        raise ValueError(f"one image at a time: {depth.shape}, {truth_m.shape}, {valid.shape} are not (H, W)")
    if not valid.any():
        return float("nan")
    return float(np.median(truth_m[valid]) / np.median(depth[valid]))


def pixel_sums(
    depth_m: np.ndarray, truth_m: np.ndarray, mask: np.ndarray, cap_m: float = MAX_DEPTH_M
) -> PixelSums:
    """Sums over the pixels of a mask, all of them valid; depth is scaled, and clamped here."""
    t = truth_m[mask].astype(np.float64)
    d = np.clip(depth_m[mask].astype(np.float64), MIN_DEPTH_M, cap_m)
    ratio = np.maximum(d / t, t / d)
    return PixelSums(
        pixels=len(t),
        abs_rel=float((np.abs(d - t) / t).sum()),
        sq_rel=float(((d - t) ** 2 / t).sum()),
        square=float(((d - t) ** 2).sum()),
        square_log=float(((np.log(d) - np.log(t)) ** 2).sum()),
        within1=int((ratio < 1.25).sum()),
        within2=int((ratio < 1.25**2).sum()),
        within3=int((ratio < 1.25**3).sum()),
        signed=float(((d - t) / t).sum()),
    )


def score_image(
    depth: np.ndarray,
    truth_m: np.ndarray,
    valid: np.ndarray,
    regions: Mapping[str, np.ndarray],
    scale: float | None = None,
    cap_m: float = MAX_DEPTH_M,
) -> dict[str, DepthTally]:
    """Errors of one image in each region, all with the scale of the whole image.

    Args:
        depth:   (H, W) predicted z-depth, any scale, > 0.
        truth_m: (H, W) true depth; only read where valid.
        valid:   (H, W) bool, pixels that count.
        regions: name -> (H, W) bool.
        scale:   metres a unit of depth, instead of the image's median scale.
        cap_m:   scaled depth is clamped to it.
    """
    if not valid.any():
        return dict.fromkeys(regions, DepthTally())
    scaled = depth * (median_scale(depth, truth_m, valid) if scale is None else scale)
    return {
        name: DepthTally.of(pixel_sums(scaled, truth_m, mask & valid, cap_m))
        for name, mask in regions.items()
    }


def far_share(depth_m: np.ndarray, truth_m: np.ndarray, mask: np.ndarray, factor: float = FAR) -> Share:
    """Pixels of a mask, all valid, that lie deeper than `factor` times their true depth; no clamping."""
    return Share(part=int((depth_m[mask] > factor * truth_m[mask]).sum()), whole=int(mask.sum()))


def beyond_contact(
    depth: np.ndarray, labels: np.ndarray, chosen: Iterable[int], factor: float = FAR
) -> Share:
    """The infinite-depth share: instance pixels deeper than `factor` times their ground contact.

    Needs no truth and no scale: an instance is compared with the depth, in the same map, of the ground
    that it stands on. Instances whose ground is not in the picture or hidden are left out.

    Args:
        depth:  (H, W) predicted depth, any scale.
        labels: (H, W) instances, 0 = background.
        chosen: the labels that are asked for.
    """
    total = Share()
    for label in chosen:
        mask = labels == label
        contact = contact_depth(depth, labels, mask)
        if contact is not None:
            total += Share(part=int((depth[mask] > factor * contact).sum()), whole=int(mask.sum()))
    return total


def contact_depth(depth: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> float | None:
    """Depth of the ground right below an instance, None where it cannot be seen.

    The median over the background pixels just below the mask, in those columns whose lowest pixel is
    near the bottom of the mask (where it stands; a bumper's shadowed underside is higher up).
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask.any(axis=0))
    lowest = mask.shape[0] - 1 - np.argmax(mask[::-1, columns], axis=0)
    standing = lowest >= rows[-1] - CONTACT_BAND * (rows[-1] - rows[0] + 1)
    below, columns = lowest[standing] + 1, columns[standing]
    inside = below < mask.shape[0]
    below, columns = below[inside], columns[inside]
    ground = labels[below, columns] == 0
    if not ground.any():
        return None
    return float(np.median(depth[below[ground], columns[ground]]))


def figures(tallies: Mapping[str, DepthTally], protocol: str, scale: str = "") -> list[Figure]:
    """The seven errors of each region, as the mean over images, then over all pixels.

    Args:
        protocol, scale: what was counted, and how the prediction's scale was chosen: see `Figure`.
    """
    found = []
    for region, tally in tallies.items():
        for suffix, how, values, count in (
            ("", "mean over images", tally.image_mean(), tally.images),
            (", pixel-pooled", "all pixels alike", tally.pooled.errors(), tally.pooled.pixels),
        ):
            found += [
                Figure(name=f"{error}, {region}{suffix}", value=float(value), unit=unit,
                       protocol=f"{protocol}; {how}", count=count, scale=scale)
                for error, value, unit in zip(ERRORS, values, UNITS, strict=True)
            ]  # fmt: skip
    return found


def merge(into: dict[str, DepthTally], more: Mapping[str, DepthTally]) -> None:
    """Add an image's tallies to the running ones."""
    for region, tally in more.items():
        into[region] = into.get(region, DepthTally()) + tally
