"""Small stand-ins for nnU-Net's networks, with its names: written from its description, to check
that exported weights fit and what they compute."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class ConvNorm(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Any, stride: Any, bias: bool, act: bool):
        super().__init__()
        padding = [(k - 1) // 2 for k in kernel]
        self.conv = nn.Conv3d(inside, outside, kernel, stride, padding, bias=bias)
        self.norm = nn.InstanceNorm3d(outside, eps=1e-5, affine=True)
        layers = [self.conv, self.norm, *([nn.LeakyReLU()] if act else [])]
        self.all_modules = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Stack(nn.Module):
    def __init__(self, count: int, inside: int, outside: int, kernel: Any, stride: Any) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *[
                ConvNorm(outside if n else inside, outside, kernel, 1 if n else stride, True, True)
                for n in range(count)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Any, stride: Any) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inside, outside, kernel, stride, True, True)
        self.conv2 = ConvNorm(outside, outside, kernel, 1, True, False)
        steps: list[nn.Module] = [nn.AvgPool3d(stride, stride)] if set(stride) != {1} else []
        if inside != outside:
            steps.append(ConvNorm(inside, outside, (1, 1, 1), 1, False, False))
        self.skip = nn.Sequential(*steps)
        self.nonlin2 = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class Blocks(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    def __init__(self, channels: int, arch: dict[str, Any]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        widths, kernels = arch["features_per_stage"], arch["kernel_sizes"]
        self.stem: nn.Module = nn.Identity()
        if "n_blocks_per_stage" in arch:
            self.stem, channels = Stack(1, channels, widths[0], kernels[0], 1), widths[0]
        for width, kernel, stride in zip(widths, kernels, arch["strides"], strict=True):
            if "n_blocks_per_stage" in arch:
                stages.append(Blocks(Residual(channels, width, kernel, stride)))
            else:
                stages.append(nn.Sequential(Stack(2, channels, width, kernel, stride)))
            channels = width
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Decoder(nn.Module):
    def __init__(self, encoder: Encoder, classes: int, arch: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = encoder
        widths, kernels, strides = (
            arch[name][::-1] for name in ("features_per_stage", "kernel_sizes", "strides")
        )
        pairs = list(pairwise(widths))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(low, high, stride, stride)
            for (low, high), stride in zip(pairs, strides[:-1], strict=True)
        )
        self.stages = nn.ModuleList(
            Stack(2, 2 * high, high, kernel, 1)
            for (_, high), kernel in zip(pairs, kernels[1:], strict=True)
        )
        self.seg_layers = nn.ModuleList(nn.Conv3d(high, classes, 1) for _, high in pairs)

    def forward(self, found: list[Tensor]) -> Tensor:
        *skips, x = found
        for up, stage, skip in zip(self.transpconvs, self.stages, skips[::-1], strict=True):
            x = stage(torch.cat([up(x), skip], 1))
        return self.seg_layers[-1](x)


class Twin(nn.Module):
    """nnU-Net's network as `architecture` describes it; volumes are (B, C, Z, Y, X)."""

    def __init__(self, architecture: dict[str, Any], channels: int, classes: int) -> None:
        super().__init__()
        arch = architecture["arch_kwargs"]
        self.encoder = Encoder(channels, arch)
        self.decoder = Decoder(self.encoder, classes, arch)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
