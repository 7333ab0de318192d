"""3x3 convolutions of stride 1 in fewer multiplications: Winograd's minimal filtering F(4x4, 3x3) on CPUs.

An output tile of 4x4 pixels takes 36 products for each pair of channels instead of 144, forward, back to the images and
back to the weights (Lavin and Gray 2016, arXiv 1509.09308). torch's CPU convolutions do not use it. It pays where
channels are many, so that the products outweigh the transforms; rounding is some ten times that of the direct sum
(relative to the largest output 1e-5 in float32).

`WinogradConv2d` is for attacks, whose passes share the transforms of the weights, `WinogradConvolutions` for training,
where mostly the gradient by the weights pays. One transform serves both directions: what takes gradients back to the
input is the mirrored convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CHANNELS, TILES = 256, 64
"""From how many on it pays, transforms of the weights included (docs/performance.md): tiles, of all images together."""

ONCE = 128
"""How many tiles where the transforms of the weights serve a single pass."""

WEIGHT_CHANNELS, WEIGHT_TILES = 128, 32
"""As above, of gradients by the weights."""

FULL = 0.75
"""How much of the tiles must be image: 7x7 pixels fill 77 % of theirs, 6x6 56 %, 2x2 25 %."""

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
        and conv.padding_mode == "zeros"
        and conv.weight.device.type == "cpu"
        and conv.weight.dtype == torch.float32
        and min(conv.in_channels, conv.out_channels) >= min(CHANNELS, WEIGHT_CHANNELS)
        and _plain(conv.weight, conv.stride, conv.padding, conv.dilation, conv.groups)
    )


class WinogradConv2d(nn.Module):
    """A convolution of that kind. Call `refresh` after its weights changed.

    While its weights ask for their gradients, it is `conv2d`.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.refresh()

    def refresh(self) -> None:
        """Forget the transform of the weights; it is made anew when it is needed."""
        self._transform: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(n, K, H, W) of (n, C, H, W)."""
        if self.weight.requires_grad or not _enough(x, self.weight, CHANNELS, TILES):
            return conv2d(x, self.weight, self.bias, padding=1)
        return _biased(_Convolution.apply(x, self), self.bias)

    def transform(self) -> Tensor:
        """The transform of the weights: (36, C, K)."""
        if self._transform is None:
            self._transform = _transformed(self.weight)
        return self._transform


class WinogradConvolutions(nn.Module):
    """`net` with `conv2d` for torch's, in networks whose weights change from pass to pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """What `net` says."""
        with _InTheirPlace():
            return self.net(x)


class _InTheirPlace(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, by Winograd where its weights ask for their gradients, and as far as that pays."""
    by_weights = torch.is_grad_enabled() and weight.requires_grad
    plain = _plain(weight, stride, padding, dilation, groups) and weight.device.type == "cpu"
    if by_weights and plain and _enough(x, weight, WEIGHT_CHANNELS, WEIGHT_TILES):
        return _biased(_TrainedConvolution.apply(x, weight), bias)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _plain(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    ones = all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation, groups))
    return ones and weight.shape[2:] == (3, 3)


def _enough(x: Tensor, weight: Tensor, channels: int, tiles: int) -> bool:
    """Whether there are that many channels and tiles, these well filled, and in float32."""
    low = torch.is_autocast_enabled(x.device.type) or {x.dtype, weight.dtype} != {torch.float32}
    if low or x.dim() != 4 or min(weight.shape[:2]) < channels:
        return False
    height, width = x.shape[2:]
    of_an_image = _tiles(height) * _tiles(width)
    return len(x) * of_an_image >= tiles and height * width >= FULL * 16 * of_an_image


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.view(1, -1, 1, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: WinogradConv2d) -> Tensor:
        ctx.conv = conv
        return _convolved(x, conv.transform())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _taken_back(gradients[0], ctx.conv.transform()), None


class _TrainedConvolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _convolved_once(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        by_x, by_weight = ctx.needs_input_grad
        return (
            _taken_back_once(gradient, weight) if by_x else None,
            _by_weights(x, gradient) if by_weight else None,
        )


def _convolved_once(x: Tensor, weight: Tensor) -> Tensor:
    if _enough(x, weight, CHANNELS, ONCE):
        return _convolved(x, _transformed(weight))
    return torch.conv2d(x, weight, padding=1)


def _taken_back_once(gradient: Tensor, weight: Tensor) -> Tensor:
    if _enough(gradient, weight, CHANNELS, ONCE):
        return _taken_back(gradient, _transformed(weight))
    return torch.conv2d(gradient, weight.transpose(0, 1).flip(2, 3), padding=1)


def _both(matrix: Tensor) -> Tensor:
    """The transform along rows and columns at once."""
    return torch.kron(matrix, matrix).float()


def _transformed(weight: Tensor) -> Tensor:
    """(36, C, K) of weights (K, C, 3, 3)."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_both(_FILTER) @ flat).view(36, *weight.shape[:2]).transpose(1, 2)


def _tiles(pixels: int) -> int:
    return -(-pixels // 4)


def _in_parts(x: Tensor) -> int:
    """How many images of (n, C, H, W) to transform at a time."""
    return max(1, _CACHE // (36 * x.element_size() * x.shape[1] * _tiles(x.shape[2]) * _tiles(x.shape[3])))


def _convolved(x: Tensor, weight: Tensor, tile: Tensor = _INPUT, answer: Tensor = _OUTPUT) -> Tensor:
    """(n, K, H, W), channels-last, of (n, C, H, W) and transformed weights (36, C, K).

    `tile`, `answer`: the transforms of a tile of the input, and to one of the output.
    """
    parts = [_part(part, weight, tile, answer) for part in x.split(_in_parts(x))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _taken_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient by the input (n, C, H, W) of gradients (n, K, H, W) by the output: each tile's mirror image."""
    return _convolved(gradient, weight.transpose(1, 2), _INPUT.flip(1), _OUTPUT.flip(0))


def _part(x: Tensor, weight: Tensor, tile: Tensor, answer: Tensor) -> Tensor:
    n, _, height, width = x.shape
    rows, columns = _tiles(height), _tiles(width)
    products = torch.bmm(_spectrum(x, tile), weight).view(36, -1)
    y = (_both(answer) @ products).view(4, 4, n, rows, columns, -1)
    y = y.permute(2, 3, 0, 4, 1, 5).reshape(n, 4 * rows, 4 * columns, -1)[:, :height, :width]
    return y.permute(0, 3, 1, 2)


def _spectrum(x: Tensor, tile: Tensor = _INPUT) -> Tensor:
    """The transform of images (n, C, H, W): (36, tiles, C)."""
    height, width = x.shape[2:]
    below, right = 4 * _tiles(height) - height + 1, 4 * _tiles(width) - width + 1
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
    return (_both(tile) @ tiles).view(36, -1, x.shape[1])


def _by_weights(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by the weights (K, C, 3, 3), channels-last, of images (n, C, H, W) and gradients (n, K, H, W)."""
    size = _in_parts(x)
    products = x.new_zeros(())
    for part, g in zip(x.split(size), gradient.split(size), strict=True):
        product = torch.bmm(_spread(g).transpose(1, 2), _spectrum(part))
        products = products + product if products.dim() else product
    by_weights = _both(_FILTER).T @ products.view(36, -1)
    return by_weights.view(3, 3, gradient.shape[1], x.shape[1]).permute(2, 3, 0, 1)


def _spread(gradient: Tensor) -> Tensor:
    """What the output's transform makes of gradients (n, K, H, W) on their way back: (36, tiles, K)."""
    n, channels, height, width = gradient.shape
    rows, columns = _tiles(height), _tiles(width)
    padded = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, 4 * columns - width, 0, 4 * rows - height))
    tiles = padded.reshape(n, rows, 4, columns, 4, channels).permute(2, 4, 0, 1, 3, 5).reshape(16, -1)
    return (_both(_OUTPUT).T @ tiles).view(36, -1, channels)
