"""From one image, as somebody stored it, to pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

PIXELS = 2**26
"""The most an image may have: a file of a few kB can claim millions, and fill the memory."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # not those for which Pillow starts another program
_CHANNELS = {"L": 1, "RGB": 3}


class UnreadableImage(ValueError):  # noqa: N818
    """What is wrong with one image."""


@dataclass(frozen=True)
class Resizing:
    """How images of any size and kind become pixels of one.

    size: pixels a side of the square that an image is resized to (bicubic); 0: its own size.
    crop: the side of the middle square that is resized, as a share of the image's shorter side: 0.875 is the usual
        224 of 256. 0: the whole image, squashed into a square.
    channels: 1 gray, 3 colour, whatever the image is; None: as it is, gray or RGB of 8 bits.
    """

    size: int = 0
    crop: float = 0.0
    channels: Literal[1, 3] | None = None

    @property
    def keeps(self) -> bool:
        """Whether it leaves arrays of pixels as they are."""
        return not self.size and self.channels is None

    def pixels(self, image: bytes | np.ndarray) -> np.ndarray:
        """(C, H, W) uint8 of an image file, or of an array (H, W, C).

        Raises UnreadableImage for what is no image, has too many pixels, is cut off, or is of another kind.
        """
        import PIL.Image

        opened = PIL.Image.fromarray(_flat(image)) if isinstance(image, np.ndarray) else _opened(image)
        opened = self._of_one_kind(opened)
        if self.size:
            opened = opened.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC, box=self._box(*opened.size))
        stored = np.asarray(opened)
        return stored[None] if stored.ndim == 2 else np.ascontiguousarray(stored.transpose(2, 0, 1))

    def _box(self, width: int, height: int) -> tuple[float, float, float, float] | None:
        if not self.crop:
            return None
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def _of_one_kind(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if self.channels is not None:
            return image.convert("L" if self.channels == 1 else "RGB")
        if image.mode not in _CHANNELS:
            raise UnreadableImage(f"is of Pillow's mode {image.mode}, neither gray (L) nor RGB: set channels to 1 or 3")
        return image


def _opened(stored: bytes) -> PIL.Image.Image:
    """The image of a file's bytes, decoded and upright."""
    import PIL.ImageOps

    try:
        image = PIL.Image.open(io.BytesIO(stored), formats=_FORMATS)
        if image.width * image.height > PIXELS:
            raise UnreadableImage(f"claims {image.width} x {image.height} pixels; the limit are {PIXELS:,}")
        if image.mode.startswith(("I", "F")) or any(";16" in str(tile.args) for tile in image.tile):
            raise UnreadableImage(f"has more than 8 bits a channel (mode {image.mode}): store it as 8 bits")
        image.load()
        if image.getexif().get(PIL.Image.ExifTags.Base.Orientation) is not None:
            image = PIL.ImageOps.exif_transpose(image)
    except UnreadableImage:
        raise
    except PIL.UnidentifiedImageError:
        raise UnreadableImage(f"is no image of a known format ({', '.join(_FORMATS)})") from None
    except PIL.Image.DecompressionBombError as error:
        raise UnreadableImage(f"claims too many pixels: {error}") from None
    except Exception as error:  # decoders of damaged files raise anything
        raise UnreadableImage(f"cannot be decoded: {error or type(error).__name__}") from error
    return image


def _flat(image: np.ndarray) -> np.ndarray:
    """As Pillow takes it: (H, W) for gray."""
    return image[:, :, 0] if image.shape[2] == 1 else image
