"""Hostile images and labels through the real command: exit code 2 before the training, row or file named."""

import io
import random

import numpy as np
import tomli_w
from commands import hookflat
from image_files import POSTSCRIPT, bomb, deep, deep_rgb, parquet, pictures, png
from PIL import Image

from hookflat.testing import recipe

SPLITS = ("train", "test")
ROW = 4
"""The one that is hostile."""
PIXELS, LABELS = pictures(6, size=5, classes=3)
FILES = [png(pixels) for pixels in PIXELS]


def images(seed=0):
    """(what, content of a file) of every image that none can use."""
    rng = random.Random(seed)
    yield "a bomb", bomb()
    yield "a large one", bomb(9000)
    yield "PostScript", POSTSCRIPT
    yield "nothing", b""
    yield "deep RGB", deep_rgb()
    yield from ((f"of mode {mode}", deep(mode)) for mode in ("I;16", "I", "F"))
    yield from ((f"of mode {mode}", png(PIXELS[0], mode)) for mode in ("1", "P", "LA", "RGBA"))
    yield "gray among colours", png(PIXELS[0], "L")
    yield "of another size", png(pictures(1, size=7)[0][0])
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"):
        stored = io.BytesIO()
        Image.fromarray(pictures(1, size=64)[0][0]).save(stored, kind)
        for _ in range(6):
            cut = rng.randrange(stored.tell() // 2)
            yield f"{kind} cut at {cut}", stored.getvalue()[:cut]
    for at in rng.sample(range(len(FILES[0]) - 20), 20):  # what is after the last of the pixels is not read
        content = bytearray(FILES[0])
        content[at] ^= 1 << rng.randrange(8)
        if not shows(bytes(content), PIXELS[0]):
            yield f"PNG with a flipped bit at {at}", bytes(content)
    for length in (1, 8, 100, 10_000):
        yield f"{length} random bytes", rng.randbytes(length)
        yield f"PNG that goes on with {length} random bytes", FILES[0][:8] + rng.randbytes(length)


def shows(content, pixels):
    """Whether Pillow reads these very pixels: some bits of a PNG do not matter to it."""
    try:
        return np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    except (OSError, SyntaxError, ValueError):
        return False


def labels():
    """Values that are the label of nothing."""
    yield from (None, -3, -1, 0.5, float("nan"), float("inf"), 2**40, 10**7, 2**62, -(2**62))


def failure(what, folder, named):
    """What is wrong with how `hookflat run` on a folder of images ends; None where nothing is."""
    tables = recipe() | {"model": {"name": "resnet_small", "width": 8}}
    tables["data"] = {"name": "images", "path": str(folder)}
    file = folder.with_name("r.toml")
    file.write_text(tomli_w.dumps(tables))
    done = hookflat("run", file, "--out", folder.with_name("run"))
    said = [line for line in done.stderr.splitlines() if line.startswith("hookflat: ")]  # the others are bars
    if done.returncode != 2 or "Traceback" in done.stderr or len(said) != 1 or done.stderr.splitlines()[-1] != said[0]:
        return f"{what}: exit code {done.returncode}: {done.stderr[-500:]}"
    if not all(name in said[0] for name in named) or not said[0].isprintable():
        return f"{what}: does not name {named}: {said[0]}"
    return "something was written" if (folder.with_name("run") / "metrics.jsonl").exists() else None


def in_parquet(what, content, split, folder):
    """A hostile image as one row of a split."""
    parquet(
        folder, **{s: ([*FILES[:ROW], content, *FILES[ROW + 1 :]] if s == split else FILES, LABELS) for s in SPLITS}
    )
    return failure(f"{what}, row of {split}", folder, (str(folder), f"split {split!r}", f"row {ROW}"))


def in_a_folder(what, content, folder):
    """A hostile image as one file of a folder for each class."""
    for split in SPLITS:
        for number, (stored, label) in enumerate(zip(FILES, LABELS, strict=True)):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            hostile = split == "train" and number == ROW
            (place / f"{number}.png").write_bytes(content if hostile else stored)
    return failure(f"{what}, file", folder, (f"{ROW}.png",))


def labelled(value, split, folder):
    """A hostile label as one row of a split."""
    wrong = [*LABELS[:ROW].tolist(), value, *LABELS[ROW + 1 :].tolist()]
    parquet(folder, **{s: (FILES, wrong if s == split else LABELS) for s in SPLITS})
    return failure(f"label {value} in {split}", folder, (str(folder), "label"))


def tried(place, *, every=1):
    """What is wrong with the `every`-th of all cases, None where nothing is."""
    calls = [(in_parquet, what, content, split) for what, content in images() for split in SPLITS]
    calls += [(in_a_folder, what, content) for what, content in images()]
    calls += [(labelled, value, split) for value in labels() for split in SPLITS]
    for number, (call, *arguments) in enumerate(calls[::every]):
        folder = place / str(number) / "set"
        folder.parent.mkdir()
        yield call(*arguments, folder)


def test_images(tally, tmp_path):
    whole = parquet(tmp_path / "whole" / "set", train=(FILES, LABELS), test=(FILES, LABELS))
    assert failure("a whole set", whole, ()).startswith("a whole set: exit code 0")
    failures = list(tried(tmp_path))
    tally("images and labels that none can use, to `run`", len(failures), [told for told in failures if told])
