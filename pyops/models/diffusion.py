"""Denoising diffusion of small images.

Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020 (equation numbers below).
"""

import math
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import GroupNorm, Module, ReLU, Sequential, Upsample
from torch.nn.functional import mse_loss


class Block(Module):
    """Two 3x3 convolutions with the timestep's embedding added in between."""

    def __init__(self, nn: ModuleType, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.first = Sequential(nn.Conv2d(channels, out_channels, 3, padding=1), ReLU())
        self.norm = GroupNorm(8, out_channels)
        self.shift = nn.Linear(embedding, out_channels)
        self.second = Sequential(nn.Conv2d(out_channels, out_channels, 3, padding=1), ReLU())

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H, W), given `embedding` (N, embedding)."""
        x = self.norm(self.first(x)) + self.shift(embedding)[:, :, None, None]
        y: Tensor = self.second(x)
        return y


class UNet(Module):
    """Noise predictor: three resolutions, skip connections, sinusoidal timestep embedding."""

    def __init__(self, nn: ModuleType, image_channels: int, channels: int) -> None:
        super().__init__()
        c, embedding = channels, 4 * channels
        self.embed = Sequential(nn.Linear(c, embedding), ReLU(), nn.Linear(embedding, embedding))
        self.stem = nn.Conv2d(image_channels, c, 3, padding=1)
        self.down1 = Block(nn, c, c, embedding)
        self.down2 = Block(nn, c, 2 * c, embedding)
        self.middle = Block(nn, 2 * c, 2 * c, embedding)
        self.up2 = Block(nn, 4 * c, c, embedding)
        self.up1 = Block(nn, 2 * c, c, embedding)
        self.head = nn.Conv2d(c, image_channels, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.upsample = Upsample(scale_factor=2)
        frequencies = torch.exp(torch.arange(c // 2) * (-math.log(10_000) / (c // 2)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise in the images `x` (N, C, H, W) at timesteps `t` (N); H, W multiples of 4."""
        angles = t[:, None] * self.get_buffer("frequencies")
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], dim=1))
        fine = self.down1(self.stem(x), embedding)
        coarse = self.down2(self.pool(fine), embedding)
        y = self.middle(self.pool(coarse), embedding)
        y = self.up2(torch.cat([self.upsample(y), coarse], dim=1), embedding)
        y = self.up1(torch.cat([self.upsample(y), fine], dim=1), embedding)
        noise: Tensor = self.head(y)
        return noise


class DDPM(Module):
    """Diffusion model with a linear beta schedule: `loss` trains it, `sample` draws images.

    The paper's betas, 1e-4 to 0.02 for 1000 steps, are scaled to `steps` so that the last step is
    as noisy with fewer of them (Nichol and Dhariwal, 2021). `channels` must be a multiple of 8.
    """

    def __init__(
        self, nn: ModuleType, image_channels: int = 1, channels: int = 16, steps: int = 200
    ) -> None:
        super().__init__()
        self.steps = steps
        self.predictor = UNet(nn, image_channels, channels)
        self.register_buffer("beta", torch.linspace(1e-4, 0.02, steps) * (1000 / steps))
        self.register_buffer("alpha_bar", torch.cumprod(1 - self.get_buffer("beta"), dim=0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (N, C, H, W) in the images `x` at timesteps `t` (N), 0 the cleanest."""
        noise: Tensor = self.predictor(x, t)
        return noise

    def loss(self, images: Tensor) -> Tensor:
        """Mean squared error of the predicted noise at random timesteps (eq. 14); images in ±1."""
        t = torch.randint(self.steps, (images.size(0),), device=images.device)
        noise = torch.randn_like(images)
        kept = self.get_buffer("alpha_bar")[t][:, None, None, None]
        return mse_loss(self(kept.sqrt() * images + (1 - kept).sqrt() * noise, t), noise)

    @torch.no_grad()
    def sample(self, *shape: int) -> Tensor:
        """Images of `shape` (N, C, H, W) drawn by ancestral sampling (algorithm 2)."""
        beta, alpha_bar = self.get_buffer("beta"), self.get_buffer("alpha_bar")
        x = torch.randn(shape, device=beta.device, dtype=beta.dtype)
        for step in reversed(range(self.steps)):
            t = torch.full(shape[:1], step, device=x.device)
            noise = self(x, t) * (beta[step] / (1 - alpha_bar[step]).sqrt())
            x = (x - noise) / (1 - beta[step]).sqrt()
            if step > 0:
                x = x + beta[step].sqrt() * torch.randn_like(x)
        return x
