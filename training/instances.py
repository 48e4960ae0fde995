"""Matched instances of a batch: where they are, how far, and how the network sees them.

A batch holds N directed pairs (target t, source s); its I instances are listed flat, each with
the pair it belongs to and its slot there, so that one network call serves them all and an
image without instances is an ordinary case (I may be 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from training.geometry import se3
from training.geometry.camera import pixel_grid

MEDIAN_GRID = 24
"""Points a side at which an instance's depth is looked up for its median."""
MOST_MOVED = 4.0
"""An instance is brought no farther than by this factor to its ground: more is a misunderstanding."""
EDGE_ROWS = 2
"""Lowest rows of an image in which the nearest ground is looked for."""
CLEARANCE = 0.06
"""Columns that end higher above an instance's lowest row, relative to its height, end in the air:
a car's body leaves 0.15 of its height free below it, and most of its columns end there."""


@dataclass(frozen=True)
class Instances:
    """I instances of N directed pairs.

    pair:        (I,) int64, which directed pair.
    slot:        (I,) int64, label in that pair's maps, 1 or more.
    class_index: (I,) int64, into `pipeline.classes.CLASSES`.
    mask:        (I, H, W) bool, its pixels in the target frame.
    box:         (I, 4) float, x0 y0 x1 y1 of the mask, pixel EDGES (a whole image begins at -0.5).
    """

    pair: Tensor
    slot: Tensor
    class_index: Tensor
    mask: Tensor
    box: Tensor

    def __len__(self) -> int:
        return len(self.pair)

    @property
    def height_px(self) -> Tensor:
        """(I,) height of the box."""
        return self.box[:, 3] - self.box[:, 1]

    def whole(self) -> Tensor:
        """(I,) bool: those that touch neither the top nor the bottom of the image."""
        return (self.box[:, 1] > -0.5) & (self.box[:, 3] < self.mask.shape[1] - 0.5)

    def inside(self) -> Tensor:
        """(I,) bool: those that touch no edge of the image."""
        return self.whole() & (self.box[:, 0] > -0.5) & (self.box[:, 2] < self.mask.shape[2] - 0.5)


def list_instances(labels: Tensor, classes: Tensor) -> Instances:
    """The instances of target label maps.

    Args:
        labels:  (N, H, W) int64, k >= 1 for the instance in slot k.
        classes: (N, M) int64, class of slot k at [k - 1], -1 where there is none.
    """
    pair, index = torch.nonzero(classes >= 0, as_tuple=True)
    mask = labels[pair] == (index + 1)[:, None, None]
    # Augmentation may crop an instance away.
    seen = mask.flatten(1).any(1)
    pair, index, mask = pair[seen], index[seen], mask[seen]
    return Instances(pair, index + 1, classes[pair, index], mask, boxes_of(mask))


def boxes_of(mask: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        mask: (I, H, W) bool. An empty mask has the box of the whole image.

    Returns:
        (I, 4) float32 x0 y0 x1 y1, pixel edges.
    """
    rows, columns = mask.any(2), mask.any(1)
    x0, x1 = _ends(columns)
    y0, y1 = _ends(rows)
    return torch.stack([x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5], 1)


def square_windows(box: Tensor, margin: float, least: float) -> Tensor:
    """Square windows around boxes, so that a crop keeps the aspect.

    Args:
        box:    (I, 4) pixel edges.
        margin: side of the window relative to the longer side of the box.
        least:  smallest side, pixels.

    Returns:
        (I, 4) pixel edges; may reach outside the image, see `crop`.
    """
    centre = (box[:, :2] + box[:, 2:]) / 2
    side = ((box[:, 2:] - box[:, :2]).amax(1, keepdim=True) * margin).clamp(min=least)
    return torch.cat([centre - side / 2, centre + side / 2], 1)


def crop(maps: Tensor, window: Tensor, pair: Tensor, size: int) -> Tensor:
    """Cut windows out of maps and resize them.

    Args:
        maps:   (N, C, H, W).
        window: (I, 4) pixel edges.
        pair:   (I,) int64 in [0, N): the map that each window is cut from.
        size:   pixels a side of the result.

    Returns:
        (I, C, size, size); beyond one pixel outside the image 0, nearer the border is repeated.
        Differentiable in `maps`.
    """
    # roi_align counts from the corner of the first pixel, we from its centre.
    rois = torch.cat([pair[:, None].to(window.dtype), window + 0.5], 1)
    return roi_align(maps, rois.to(maps.dtype), (size, size), sampling_ratio=2, aligned=True)


def median_depth(depth: Tensor, instances: Instances) -> Tensor:
    """Median depth of each instance, looked up on a grid over its box.

    Args:
        depth: (N, 1, H, W).

    Returns:
        (I,), differentiable in depth.
    """
    if not len(instances):
        return depth.new_zeros(0)
    H, W = depth.shape[2:]
    u = _grid_between(instances.box[:, 0], instances.box[:, 2], W)
    v = _grid_between(instances.box[:, 1], instances.box[:, 3], H)
    rows, columns = v[:, :, None], u[:, None, :]
    values = depth[instances.pair[:, None, None], 0, rows, columns]
    inside = instances.mask[torch.arange(len(instances), device=depth.device)[:, None, None], rows, columns]
    median = values.masked_fill(~inside, torch.nan).flatten(1).nanmedian(1).values
    # A thin diagonal may slip through the grid: then all of its pixels count.
    total = (depth[instances.pair, 0] * instances.mask).flatten(1).sum(1)
    mean = total / instances.mask.flatten(1).sum(1).clamp(min=1)
    return torch.where(inside.flatten(1).any(1), median.nan_to_num(1.0), mean)


def centres(depth: Tensor, K: Tensor, instances: Instances) -> Tensor:
    """Centre of each instance in the target camera: its mean pixel at its median depth.

    Args:
        depth: (N, 1, H, W);  K: (N, 3, 3).

    Returns:
        (I, 3).
    """
    H, W = depth.shape[2:]
    grid = pixel_grid(H, W, like=depth)
    weight = instances.mask.to(depth.dtype)
    area = weight.sum((1, 2)).clamp(min=1)
    u = (weight.sum(1) * grid[0, :, 0]).sum(1) / area
    v = (weight.sum(2) * grid[:, 0, 1]).sum(1) / area
    z = median_depth(depth, instances)
    pixel = torch.stack([u, v, torch.ones_like(u)], 1)
    rays = torch.linalg.solve(K[instances.pair], pixel[..., None])[..., 0]
    return rays * z[:, None]


def ground_below(depth: Tensor, labels: Tensor, instances: Instances) -> tuple[Tensor, Tensor]:
    """Depth of the ground on which each instance stands.

    The lowest mask pixel of each column touches the ground where background lies beneath it,
    if it is one of the lowest of the whole instance (wheels, feet; `CLEARANCE`); the median over
    such columns counts. The contact lies at that pixel's lower edge. Inverse depth of a plane is
    linear in the row, so it is carried up to there from one and three rows below.

    Args:
        depth:  (N, 1, H, W);  labels: (N, H, W), 0 is background.

    Returns:
        (I,) depth, 1 where unknown, and (I,) bool, where it is known. No gradient.
    """
    depth = depth.detach()
    H = depth.shape[2]
    mask = instances.mask
    lowest = (H - 1) - mask.flip(1).to(torch.uint8).argmax(1)  # (I, W)
    columns = torch.arange(mask.shape[2], device=depth.device).expand_as(lowest)
    near, far = (lowest + 1).clamp(max=H - 1), (lowest + 3).clamp(max=H - 1)
    pair = instances.pair[:, None].expand_as(lowest)
    free = mask.any(1) & (lowest + 3 < H)
    free &= (labels[pair, near, columns] == 0) & (labels[pair, far, columns] == 0)
    bottom = instances.box[:, 3] - 0.5
    free &= lowest >= (bottom - CLEARANCE * instances.height_px)[:, None]
    disparity = 1.25 / depth[pair, 0, near, columns] - 0.25 / depth[pair, 0, far, columns]
    free &= disparity > 0
    median = disparity.masked_fill(~free, torch.nan).nanmedian(1).values
    known = free.any(1)
    return torch.where(known, 1 / median.nan_to_num(1.0), 1.0), known


def ground_limit(depth: Tensor, labels: Tensor, instances: Instances) -> tuple[Tensor, Tensor]:
    """Depth beyond which an instance that the lower edge of the image cuts cannot stand.

    Its contact is below the image, and so nearer than the ground that is seen at its edge: the
    median over the background of the lowest rows of that image.

    Args:
        depth: (N, 1, H, W);  labels: (N, H, W), 0 is background.

    Returns:
        (I,) depth, 1 where unknown, and (I,) bool, where it is known. No gradient.
    """
    rows = min(EDGE_ROWS, depth.shape[2])
    ground = labels[:, -rows:] == 0
    lowest = depth.detach()[:, 0, -rows:].masked_fill(~ground, torch.nan)
    median = lowest.flatten(1).nanmedian(1).values
    cut = instances.box[:, 3] >= instances.mask.shape[1] - 0.5
    known = cut & (ground.flatten(1).sum(1) >= EDGE_ROWS)[instances.pair]
    return torch.where(known, median[instances.pair].nan_to_num(1.0), 1.0), known


def grounded_depth(depth: Tensor, labels: Tensor, instances: Instances, slack: float) -> Tensor:
    """Depth in which each instance is brought to near where it stands, its shape kept.

    Its pixels' depths are multiplied so that their median is that of the ground below
    (`ground_below`), up to a factor 1 + slack either way; instances that the lower edge cuts are
    brought to the nearest ground that is seen (`ground_limit`) if they are beyond; the others stay.

    Args:
        depth: (N, 1, H, W);  labels: (N, H, W), 0 is background.
        slack: 0 or more. The ground's depth is predicted too, and an instance's may be the better one.

    Returns:
        (N, 1, H, W); the factors carry no gradient.
    """
    ground, known = ground_below(depth, labels, instances)
    limit, limited = ground_limit(depth, labels, instances)
    median = median_depth(depth.detach(), instances)
    standing = (median / ground).clamp(1 / (1 + slack), 1 + slack) * ground / median
    cut = (limit / median).clamp(max=1.0)
    factor = torch.where(known & instances.whole(), standing, torch.where(limited, cut, 1.0))
    factor = factor.clamp(1 / MOST_MOVED, MOST_MOVED)
    slots = int(instances.slot.max()) + 1 if len(instances) else 1
    table = depth.new_ones(len(depth), slots).index_put((instances.pair, instances.slot), factor)
    at = labels.clamp(0, slots - 1).flatten(1)
    return depth * table.gather(1, at).view_as(depth)


def about_centre(angles: Tensor, shift: Tensor, centre: Tensor, backward: Tensor) -> Tensor:
    """Rigid motion of instances about their own centres, or its inverse.

    Forward in time X' = R (X - c) + c + shift, with c where the instance is before. Where
    `backward` is set, c is where the instance is afterwards and the motion runs back to before:
    X = R^T (X' - c) + c - shift, the exact inverse of the forward motion about c - shift.

    Args:
        angles: (I, 3) Euler angles;  shift: (I, 3);  centre: (I, 3);  backward: (I,) bool.

    Returns:
        (I, 4, 4).
    """
    rotation = se3.from_euler(angles, torch.zeros_like(shift))
    rotation = torch.where(backward[:, None, None], se3.inverse(rotation), rotation)
    turned = se3.about(rotation, centre)
    signed = torch.where(backward[:, None], -shift, shift)
    moved = turned.clone()
    moved[:, :3, 3] = turned[:, :3, 3] + signed
    return moved


def _ends(line: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true index of each row of (I, L) bool, as float."""
    first = line.to(torch.uint8).argmax(1)
    last = line.shape[1] - 1 - line.flip(1).to(torch.uint8).argmax(1)
    return first.float(), last.float()


def _grid_between(low: Tensor, high: Tensor, limit: int) -> Tensor:
    """(I, MEDIAN_GRID) pixel indices spread evenly between edges."""
    steps = (torch.arange(MEDIAN_GRID, device=low.device, dtype=low.dtype) + 0.5) / MEDIAN_GRID
    spread = low[:, None] + (high - low)[:, None] * steps
    return spread.round().long().clamp(0, limit - 1)
