"""Files of images as their authors write them, made by others than the code that reads them."""

import io
import pickle
import tarfile

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
