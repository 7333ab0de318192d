"""Files of images as their authors write them, made by others than the code that reads them."""

import io
import pickle
import struct
import tarfile
import zlib

import datasets
import numpy as np
from PIL import Image
from scipy.io import savemat


def pictures(count, *, size=32, classes=10, seed=0):
    """Pixels (N, H, W, 3) uint8 and labels (N,)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % classes


def rows_of(pixels):
    """(N, 3072): all of red, then green, then blue, as CIFAR has it."""
    return pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)


def tar(path, members):
    with tarfile.open(path, "w:gz") as opened:
        for name, stored in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(stored)
            opened.addfile(about, io.BytesIO(stored))
    return path


def cifar10_batches(train, test):
    """Five batches and one, as pickles of the documented dict (Python 2's text is bytes)."""
    (x, y), (x_test, y_test) = train, test
    parts = {f"data_batch_{i + 1}": (x[i::5], y[i::5]) for i in range(5)} | {"test_batch": (x_test, y_test)}
    batches = {
        name: pickle.dumps({b"data": rows_of(a), b"labels": b.tolist(), b"batch_label": name.encode()}, protocol=2)
        for name, (a, b) in parts.items()
    }
    return batches | {"batches.meta": pickle.dumps({b"label_names": [b"class%d" % i for i in range(10)]}, protocol=2)}


def cifar10_binary(train, test):
    (x, y), (x_test, y_test) = train, test
    parts = {f"data_batch_{i + 1}.bin": (x[i::5], y[i::5]) for i in range(5)} | {"test_batch.bin": (x_test, y_test)}
    return {n: np.hstack([b[:, None].astype(np.uint8), rows_of(a)]).tobytes() for n, (a, b) in parts.items()}


def unpacked(folder, members):
    folder.mkdir(parents=True, exist_ok=True)
    for name, stored in members.items():
        (folder / name).write_bytes(stored)
    return folder


def svhn(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, (x, y) in splits.items():
        labels = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": labels})
    return folder


def png(pixels, mode=None):
    stored = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stored, "PNG")
    return stored.getvalue()


def parquet(folder, label=None, **splits):
    """`split*.parquet` of rows (bytes of an image file, label); labels are of the feature `label`, else plain."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, (files, y) in splits.items():
        rows = {"img": [{"bytes": f, "path": f"{i}.png"} if f is not None else None for i, f in enumerate(files)]}
        kinds = {"img": datasets.Image()} | ({"label": label} if label else {})
        table = datasets.Dataset.from_dict(rows | {"label": list(y)})
        for name, kind in kinds.items():
            table = table.cast_column(name, kind)
        table.to_parquet(folder / f"{split}-00000.parquet")
    return folder


# --- hostile ones -----------------------------------------------------------------------------------------------------


def chunk(kind, stored):
    return struct.pack(">I", len(stored)) + kind + stored + struct.pack(">I", zlib.crc32(kind + stored))


def bomb(side=40_000):
    """A PNG of 2 kB that claims 1.6 billion pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep(mode):
    stored = io.BytesIO()
    pixels = np.zeros((5, 5), {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode])
    Image.fromarray(pixels).save(stored, "PNG" if mode == "I;16" else "TIFF")
    return stored.getvalue()


def deep_rgb():
    rows = b"".join(b"\0" + bytes(5 * 6) for _ in range(5))
    header = struct.pack(">IIBBBBB", 5, 5, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\nshowpage\n"
