"""One value an image, against the image's own."""

from __future__ import annotations

from torch import Tensor


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """(n,) as (n, 1, 1, 1), to go with images `like` (n, C, H, W), or with what has other dimensions."""
    return values.view(-1, *[1] * (like.dim() - 1))
