"""Maps of many images computed a few images at a time, so that the work stays in the cache.

On a CPU the terms of the objective are a hundred passes over memory, and a batch of maps is larger than any
cache: an image at a time takes less than half of the time. Nothing is kept for the gradient but the inputs;
what lies between is computed again, as in gradient checkpointing (Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_PIXELS = 1 << 18
"""Images of a chunk have together about so many pixels."""


def image_by_image(function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """`function(*maps)`, for functions under which no image sees another.

    Args:
        function: (n, C_i, H, W) maps to one (n, ...) map, of any n.
        maps:     (N, C_i, H, W) each.

    Returns:
        (N, ...), with gradient to every map once, to the last bit what `function` gives.
    """
    if maps[0].device.type != "cpu" or len(maps[0]) <= _images_of_a_chunk(maps[0]):
        return function(*maps)
    return _ImageByImage.apply(function, *maps)


def _images_of_a_chunk(first: Tensor) -> int:
    return max(1, CHUNK_PIXELS // (first.shape[-2] * first.shape[-1]))


def _parts(first: Tensor) -> Iterator[slice]:
    step = _images_of_a_chunk(first)
    return (slice(begin, begin + step) for begin in range(0, len(first), step))


class _ImageByImage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *maps: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*maps)
        return torch.cat([function(*(each[part] for each in maps)) for part in _parts(maps[0])])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps: tuple[Tensor, ...] = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        found = [
            torch.empty_like(each) if wanted else None for each, wanted in zip(maps, needed, strict=True)
        ]
        for part in _parts(maps[0]):
            inputs = [
                each[part].detach().requires_grad_(wanted) for each, wanted in zip(maps, needed, strict=True)
            ]
            with torch.enable_grad():
                value = ctx.function(*inputs)
            wanted_inputs = [each for each in inputs if each.requires_grad]
            answers = iter(torch.autograd.grad(value, wanted_inputs, gradient[0][part]))
            for whole in found:
                if whole is not None:
                    whole[part] = next(answers)
        return None, *found
