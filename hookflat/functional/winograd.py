"""3x3 convolutions of stride 1 in fewer multiplications: Winograd's minimal filtering F(4x4, 3x3) on CPUs.

An output tile of 4x4 pixels takes 36 products for each pair of channels instead of 144 (Lavin and Gray 2016, arXiv
1509.09308). torch's CPU convolutions do not use it. It pays where channels are many, so that the products outweigh the
transforms; rounding is some ten times that of the direct sum (relative to the largest output 1e-5 in float32).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, TILES = 256, 64
"""From how many on it pays, transforms of the weights included (docs/performance.md): tiles, of all images together."""

_CACHE = 16 * 2**20  # bytes of transformed input at a time, so that it stays near the cores

_INPUT = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]], dtype=torch.float64,
)  # fmt: skip
_FILTER = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / 24  # fmt: skip
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


def pays(conv: nn.Module) -> bool:
    """Whether a module is a convolution of that kind, on a CPU in float32, and wide enough."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= CHANNELS
        and conv.weight.device.type == "cpu"
        and conv.weight.dtype == torch.float32
    )


class WinogradConv2d(nn.Module):
    """A convolution of that kind. Call `refresh` after its weights changed.

    Gradients are by its input alone: while its weights ask for theirs, it is torch's convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.refresh()

    def refresh(self) -> None:
        """Forget the transforms of the weights; they are made anew when they are needed."""
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(n, K, H, W) of (n, C, H, W)."""
        few = len(x) * _tiles(x.shape[2]) * _tiles(x.shape[3]) < TILES
        if few or self.weight.requires_grad or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return F.conv2d(x, self.weight, self.bias, padding=1)
        y = _Convolution.apply(x, self)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)

    def forwards(self) -> Tensor:
        """The transform of the weights."""
        if self._forward is None:
            self._forward = _transformed(self.weight)
        return self._forward

    def backwards(self) -> Tensor:
        """The transform of the flipped weights, which take gradients back to the input."""
        if self._backward is None:
            self._backward = _transformed(self.weight.transpose(0, 1).flip(2, 3))
        return self._backward


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: WinogradConv2d) -> Tensor:
        ctx.conv = conv
        return _convolved(x, conv.forwards())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _convolved(gradients[0], ctx.conv.backwards()), None


def _both(matrix: Tensor) -> Tensor:
    """The transform along rows and columns at once."""
    return torch.kron(matrix, matrix).float()


@torch.no_grad()
def _transformed(weight: Tensor) -> Tensor:
    """(36, C, K) of weights (K, C, 3, 3)."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_both(_FILTER) @ flat).view(36, *weight.shape[:2]).transpose(1, 2)


def _tiles(pixels: int) -> int:
    return -(-pixels // 4)


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    """(n, K, H, W), channels-last, of (n, C, H, W) and transformed weights (36, C, K)."""
    image = 36 * x.element_size() * x.shape[1] * _tiles(x.shape[2]) * _tiles(x.shape[3])
    parts = [_part(part, weight) for part in x.split(max(1, _CACHE // image))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _part(x: Tensor, weight: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    rows, columns = _tiles(height), _tiles(width)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
    spectrum = (_both(_INPUT) @ tiles).view(36, -1, channels)
    products = torch.bmm(spectrum, weight).view(36, -1)
    y = (_both(_OUTPUT) @ products).view(4, 4, n, rows, columns, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * rows, 4 * columns, -1)[:, :height, :width]
    return y.permute(0, 3, 1, 2)
