"""Motion of an object from two crops of it: features, local correlation, regression.

Where the seven-convolution network must learn by itself to compare two images, this one is
given the comparison: the inner products of each feature with those nearby in the other crop
(Dosovitskiy et al. 2015, FlowNetC). Positions are kept to the end, because turning and
approaching differ from shifting only in where pixels move which way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OUTPUT_SCALE = 0.1
"""Raw outputs of order one are a tenth of a radian, of the window's side and of the depth."""


class CorrelationNet(nn.Module):
    """Two crops -> (I, 6): three Euler angles and a shift in units of window, window, depth.

    Args of the constructor:
        size:   pixels a side of the crops, a multiple of 16.
        reach:  largest displacement compared, in quarter-resolution pixels.
        width:  multiplier of all channel numbers.
    """

    def __init__(self, size: int = 64, reach: int = 4, width: float = 1.0) -> None:
        super().__init__()
        if size % 16 or size < 32:
            raise ValueError(f"crops of {size} px; a multiple of 16, 32 or more, is needed")
        a, b, c = (max(8, round(channels * width)) for channels in (24, 48, 96))
        self.reach = reach
        self.features = nn.Sequential(
            nn.Conv2d(4, a, 5, stride=2, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, b, 3, padding=1),
        )
        self.compare = nn.Sequential(
            nn.Conv2d((2 * reach + 1) ** 2 + b, c, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, c, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.regress = nn.Sequential(
            nn.Flatten(), nn.Linear(c * (size // 16) ** 2, c), nn.ReLU(inplace=True), nn.Linear(c, 6)
        )
        last = self.regress[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # training begins at "does not move"
        nn.init.zeros_(last.bias)

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """(I, 4, size, size) masked RGB in [0, 1] and the mask, twice -> (I, 6)."""
        count = len(earlier)
        both = torch.cat([earlier, later])
        colours = (both[:, :3] - 0.45) / 0.225 * both[:, 3:]
        found = self.features(torch.cat([colours, both[:, 3:]], 1))
        first, second = F.normalize(found, dim=1).unflatten(0, (2, count))
        compared = torch.cat([correlate(first, second, self.reach), found[:count]], 1)
        return self.regress(self.compare(compared)) * OUTPUT_SCALE


def correlate(first: Tensor, second: Tensor, reach: int) -> Tensor:
    """Inner products of each feature with those within `reach` of it in the other map.

    Args:
        first, second: (I, C, h, w).

    Returns:
        (I, (2 reach + 1)^2, h, w); channel (dv + reach)(2 reach + 1) + du + reach holds
        <first(u, v), second(u + du, v + dv)>, 0 outside.
    """
    count, _, h, w = first.shape
    rows, wide = 2 * reach + 1, w + 2 * reach
    padded = F.pad(second, (reach, reach, reach, reach))
    # One product of matrices a row, with all columns of the rows around it, then the local
    # ones: far faster than a product per displacement.
    around = padded.unfold(2, rows, 1).permute(0, 2, 1, 4, 3).flatten(3)  # (I, h, C, rows wide)
    products = first.permute(0, 2, 3, 1) @ around  # (I, h, w, rows wide)
    dv = torch.arange(rows, device=first.device)[:, None] * wide
    shifts = (dv + torch.arange(rows, device=first.device)).flatten()
    nearby = torch.arange(w, device=first.device)[:, None] + shifts
    return products.gather(3, nearby.expand(count, h, -1, -1)).permute(0, 3, 1, 2)
