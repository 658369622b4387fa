"""Image preparation on whole batches, with torch operations alone."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

ROTATION = 10.0  # degrees
BRIGHTNESS = 0.2
CONTRAST = 0.2


def to_rgb(images: Tensor, size: int = 48) -> Tensor:
    """Grey images (N, 1, H, W) in 0…1, scaled bilinearly, to RGB (N, 3, size, size) in ±1."""
    return _normalised_rgb(_scaled(images, size))


def augment(images: Tensor, generator: torch.Generator, size: int = 48) -> Tensor:
    """`to_rgb` of randomly turned images, as torchvision's RandomRotation and ColorJitter do it.

    Each image gets its own angle in ±ROTATION, filled with 0 from outside, its own brightness
    factor in 1 ± BRIGHTNESS and its own contrast factor in 1 ± CONTRAST, in this order. `generator`
    is a CPU one whatever the images' device, so a seed means the same batch everywhere.
    """

    def draw(spread: float) -> Tensor:
        values = torch.rand(len(images), generator=generator) * (2 * spread) - spread
        return values.to(images)[:, None, None, None]

    images = _rotated(_scaled(images, size), draw(math.radians(ROTATION)))
    images = (images * (1 + draw(BRIGHTNESS))).clamp(0, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * (1 + draw(CONTRAST))).clamp(0, 1)
    return _normalised_rgb(images)


def _scaled(images: Tensor, size: int) -> Tensor:
    return interpolate(images, (size, size), mode="bilinear", antialias=True)


def _rotated(images: Tensor, angles: Tensor) -> Tensor:
    """Square images (N, C, S, S) turned by `angles` (N, 1, 1, 1), radians, about their centres."""
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rotation = torch.cat([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = affine_grid(rotation, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def _normalised_rgb(images: Tensor) -> Tensor:
    return (images * 2 - 1).repeat(1, 3, 1, 1)
