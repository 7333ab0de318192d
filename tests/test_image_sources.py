"""The same images from every kind of file; and each kind of damage is one line that names file or row."""

import os
import pickle
import time

import datasets
import numpy as np
import pytest
import torch
from commands import fails
from image_files import (
    POSTSCRIPT,
    bomb,
    cifar10_batches,
    cifar10_binary,
    deep,
    deep_rgb,
    parquet,
    pictures,
    png,
    rows_of,
    svhn,
    tar,
    unpacked,
)
from PIL import Image

from hookflat import UserError
from hookflat.reading import archives, cache, npz
from hookflat.reading.decoding import Resizing
from hookflat.reading.hub import classes_in
from hookflat.testing import tiny_run

TRAIN, TEST = pictures(15, seed=1), pictures(10, seed=2)
IN_BATCHES = np.concatenate([np.arange(15)[i::5] for i in range(5)])
"""The order in which CIFAR's five batches hold the training images here."""


def loaded(path, **data):
    with tiny_run({"data": {"name": "images", "path": str(path)} | data}) as run:
        return run.data


def told(path, **data):
    with pytest.raises(UserError) as caught:
        loaded(path, **data)
    said = str(caught.value)
    assert "\n" not in said
    return said


def assert_are(images, pixels, labels):
    assert torch.equal(images.x, torch.from_numpy(pixels).movedim(3, 1))
    assert images.y.tolist() == list(labels)
    assert images.x.is_contiguous()


# --- one set of images in every kind of file --------------------------------------------------------------------------


def cifar10_tar(folder):
    batches = cifar10_batches(TRAIN, TEST)
    return tar(folder / "cifar-10-python.tar.gz", {f"cifar-10-batches-py/{n}": b for n, b in batches.items()})


def cifar10_folder(folder):
    return unpacked(folder / "cifar-10-batches-py", cifar10_batches(TRAIN, TEST))


def cifar10_bin(folder):
    return unpacked(folder / "cifar-10-batches-bin", cifar10_binary(TRAIN, TEST))


def cifar10_bin_tar(folder):
    return tar(folder / "cifar-10-binary.tar.gz", {f"x/{n}": b for n, b in cifar10_binary(TRAIN, TEST).items()})


@pytest.mark.parametrize("write", [cifar10_tar, cifar10_folder, cifar10_bin, cifar10_bin_tar], ids=lambda w: w.__name__)
def test_cifar10_as_its_authors_pack_it(write, tmp_path):
    data = loaded(write(tmp_path))
    assert_are(data.train, TRAIN[0][IN_BATCHES], TRAIN[1][IN_BATCHES])
    assert_are(data.test, *TEST)
    assert data.num_classes == 10
    if "bin" not in write.__name__:
        assert data.about["names"] == [f"class{i}" for i in range(10)]


def test_cifar100_has_two_kinds_of_labels(tmp_path):
    fine, coarse = np.arange(15) * 6, np.arange(15)
    both = {b"data": rows_of(TRAIN[0]), b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
    names = {b"fine_label_names": [b"f%d" % i for i in range(100)], b"coarse_label_names": [b"c"] * 20}
    stored = {n: pickle.dumps(v, protocol=2) for n, v in {"train": both, "test": both, "meta": names}.items()}
    path = tar(tmp_path / "cifar-100-python.tar.gz", {f"cifar-100-python/{n}": b for n, b in stored.items()})
    data = loaded(path, label="fine_label")
    assert_are(data.train, TRAIN[0], fine)
    assert data.num_classes == 100
    assert loaded(path, label="coarse_label").train.y.tolist() == coarse.tolist()
    assert "set data.label to one of the columns image, fine_label, coarse_label" in told(path)


def test_svhn_whose_digit_0_is_called_10(tmp_path):
    data = loaded(svhn(tmp_path, train=TRAIN, test=TEST))
    assert_are(data.train, *TRAIN)
    assert_are(data.test, *TEST)


@pytest.mark.parametrize("layout", ["one file", "a file each", "channels first", "compressed"])
def test_npz(tmp_path, layout):
    if layout == "one file":
        path = tmp_path / "all.npz"
        np.savez(path, x_train=TRAIN[0], y_train=TRAIN[1][:, None], x_test=TEST[0], y_test=TEST[1][:, None])
    else:
        path = tmp_path
        save = np.savez_compressed if layout == "compressed" else np.savez
        for split, (x, y) in {"train": TRAIN, "test": TEST}.items():
            save(path / f"{split}.npz", x=x.transpose(0, 3, 1, 2) if layout == "channels first" else x, y=y)
    data = loaded(path)
    assert_are(data.train, *TRAIN)
    assert_are(data.test, *TEST)


def test_parquet_arrow_and_a_saved_set_hold_the_same(tmp_path):
    label = datasets.ClassLabel(names=[f"n{i}" for i in range(10)])
    splits = {"train": ([png(p) for p in TRAIN[0]], TRAIN[1]), "test": ([png(p) for p in TEST[0]], TEST[1])}
    first = loaded(parquet(tmp_path / "parquet", label, **splits))
    assert_are(first.train, *TRAIN)
    assert first.about["names"][:2] == ["n0", "n1"]
    assert (
        classes_in(str(tmp_path / "parquet"), "train", "label") == classes_in(str(tmp_path / "parquet"), "test") == 10
    )
    assert classes_in(str(tmp_path / "parquet"), "train", "img") is None
    sets = {s: datasets.Dataset.from_parquet(str(tmp_path / "parquet" / f"{s}-00000.parquet")) for s in splits}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "disk")
    (tmp_path / "arrow").mkdir()
    for split in splits:
        (tmp_path / "arrow" / f"{split}.arrow").write_bytes(
            next((tmp_path / "disk" / split).glob("*.arrow")).read_bytes()
        )
    for kind in ("disk", "arrow"):
        assert classes_in(str(tmp_path / kind), "train") is None
        again = loaded(tmp_path / kind)
        assert_are(again.train, *TRAIN)
        assert_are(again.test, *TEST)


# --- resizing, channels, subsets --------------------------------------------------------------------------------------


def test_the_middle_square_is_that_of_resizing_the_shorter_side_and_cutting():
    """As on ImageNet: here to 16 pixels of the shorter side, of which the middle 8 are kept."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    middle = Resizing(8, crop=0.5).pixels(png(pixels)).astype(int)
    by_pillow = np.asarray(Image.fromarray(pixels).resize((24, 16)).crop((8, 4, 16, 12))).transpose(2, 0, 1)
    assert np.abs(middle - by_pillow).max() <= 1
    whole = Resizing(8).pixels(png(pixels))
    assert np.array_equal(whole, np.asarray(Image.fromarray(pixels).resize((8, 8))).transpose(2, 0, 1))


def test_arrays_are_resized_as_files_are(tmp_path):
    path = cifar10_folder(tmp_path)
    x = loaded(path, size=16).test.x
    assert np.array_equal(x[3], np.asarray(Image.fromarray(TEST[0][3]).resize((16, 16))).transpose(2, 0, 1))


def test_gray_images_among_colour_are_told_and_made_colour_where_asked(tmp_path):
    files = [png(p, "L" if i == 4 else None) for i, p in enumerate(TRAIN[0])]
    path = parquet(tmp_path, train=(files, TRAIN[1]), test=([png(p) for p in TEST[0]], TEST[1]))
    said = told(path)
    assert "row 4 (4.png) is gray of 32 x 32 pixels, those before it RGB of 32 x 32 pixels" in said
    assert "data.channels" in said
    data = loaded(path, channels=3)
    gray = np.asarray(Image.fromarray(TRAIN[0][4]).convert("L"))
    assert all(np.array_equal(channel, gray) for channel in data.train.x[4])
    assert loaded(path, channels=1).channels == 1


def test_subsets_are_the_first_ones_or_as_many_of_each_class_and_are_in_the_records(tmp_path):
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 1])
    np.savez(tmp_path / "train.npz", x=TEST[0], y=y)
    np.savez(tmp_path / "test.npz", x=TEST[0], y=y)
    first, balanced = loaded(tmp_path, train=6), loaded(tmp_path, train=6, balance=True)
    assert first.train.y.tolist() == [0, 0, 0, 0, 1, 1]
    assert balanced.train.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(balanced.train.x, first.test.x[[0, 1, 4, 5, 6, 7]])
    assert balanced.about["train"] == {"split": "train", "of": 10, "rows": [[0, 1], [4, 7]]}
    assert torch.equal(balanced.unused(0), first.test.x[[2, 3, 8, 9]])
    assert torch.equal(balanced.unused(3), first.test.x[[2, 3, 8]])
    assert "do not divide by the 3 classes" in told(tmp_path, train=4, balance=True)
    y[:] = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    np.savez(tmp_path / "train.npz", x=TEST[0], y=y)
    assert "has 1 examples of class 2, not 2" in told(tmp_path, train=6, balance=True)
    assert "has 10 examples, not 12" in told(tmp_path, train=12)


def test_what_comes_class_by_class_is_shuffled_always_alike(tmp_path):
    y = np.repeat([2, 0, 1], 20)  # in any order of the classes
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    x[:, 0, 0, 0] = np.arange(60)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=x, y=y)
    data, again = loaded(tmp_path), loaded(tmp_path)
    assert torch.equal(data.train.x, again.train.x)
    rows = data.train.x[:, 0, 0, 0].long()
    assert sorted(rows.tolist()) == list(range(60))
    assert torch.equal(data.train.y, torch.from_numpy(y)[rows])
    assert data.about["train"] == {"split": "train", "of": 60, "rows": [[0, 59]], "order": "shuffled"}
    assert set(data.train.y[:15].tolist()) == set(data.hold_out(15, "test").holdout.y.tolist()) == {0, 1, 2}
    few, balanced = loaded(tmp_path, train=12), loaded(tmp_path, train=12, balance=True)
    assert torch.equal(few.train.x, data.train.x[:12])
    assert torch.equal(few.unused(0), data.train.x[12:])
    assert balanced.train.y.bincount().tolist() == [4, 4, 4]
    assert balanced.train.y.diff().count_nonzero() > 3


def test_a_set_that_was_saved_alone_is_the_split_that_it_was_or_the_training_split(tmp_path):
    label = datasets.ClassLabel(names=[f"n{i}" for i in range(10)])
    folder = parquet(tmp_path / "parquet", label, train=([png(p) for p in TRAIN[0]], TRAIN[1]))
    alone = datasets.Dataset.from_parquet(str(folder / "train-00000.parquet"))
    of_none = datasets.Dataset.from_list(alone.cast_column("img", datasets.Image(decode=False)).to_list())
    of_none = of_none.cast(alone.features)
    assert (str(alone.split), of_none.split) == ("train", None)
    for each, name in ((alone, "alone"), (of_none, "none")):
        each.save_to_disk(tmp_path / name)
        assert_are(loaded(tmp_path / name, test_split="train").test, *TRAIN)


def test_one_class_alone_is_told(tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=TEST[0], y=np.zeros(10, np.int64))
    assert "has one class alone" in told(tmp_path)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("HOOKFLAT_CACHE", str(folder))
    return folder


def small_set(folder, count=6, seed=1):
    x, y = pictures(count, size=5, classes=3, seed=seed)
    files = [png(p) for p in x]
    return parquet(folder, train=(files, y), test=(files, y)), x, y


def test_images_are_decoded_once_and_again_where_files_or_rule_change(tmp_path, own_folder, monkeypatch):
    path, x, y = small_set(tmp_path / "a")
    loaded(path)
    assert len(list(own_folder.glob("*.npy"))) == 1  # train and test are the same images
    with monkeypatch.context() as patch:
        patch.setattr(Resizing, "pixels", lambda *_: pytest.fail("decoded again"))
        assert_are(loaded(path).train, x, y)
        other_place, *_ = small_set(tmp_path / "b")
        assert_are(loaded(other_place).train, x, y)
    loaded(path, size=4)
    loaded(small_set(tmp_path / "c", seed=2)[0])
    assert len(list(own_folder.glob("*.npy"))) == 3


def test_large_sets_are_mapped_and_a_damaged_file_is_made_again(tmp_path, own_folder, monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_FROM", 100)
    path, x, y = small_set(tmp_path / "a")
    assert_are(loaded(path).train, x, y)
    (file,) = own_folder.glob("*.npy")
    assert isinstance(cache._opened(file, 6), np.memmap)
    file.write_bytes(file.read_bytes()[:-20])
    assert_are(loaded(path).train, x, y)
    assert not list(own_folder.glob("*.writing"))


def test_two_processes_decode_once(tmp_path, own_folder):
    from processes import start

    def make():
        def parts():
            while len(list(tmp_path.glob("*.there"))) < 2:
                time.sleep(0.01)
            time.sleep(0.5)  # the other one waits by now
            with (tmp_path / "made").open("a") as log:
                log.write("x")
            for _ in range(3):
                yield np.full((2, 4), os.getpid() % 256, np.uint8)

        (tmp_path / f"{os.getpid()}.there").touch()
        print(cache.kept_array("key", parts, 6).sum())

    running = start(tmp_path, call=make), start(tmp_path / "other", call=make)
    assert [r.wait(60) for r in running] == [0, 0]
    assert (tmp_path / "made").read_text() == "x"
    assert running[0].said("out") == running[1].said("out")


def test_a_full_disk_under_the_cache_is_named_and_leaves_nothing(tmp_path, own_folder, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    x, y = pictures(8, size=8)
    files = [png(p) for p in x]
    parquet(tmp_path / "set", train=(files, y), test=(files, y))
    command = ("run", "at", "--set", "data.name=images", "--set", f"data.path={tmp_path / 'set'}", "--max-steps", 1)
    with monkeypatch.context() as patch:
        patch.setattr(cache.np.lib.format, "write_array_header_1_0", full)
        said = fails(3, *command, "--out", tmp_path / "run")
    assert f"disk full: {own_folder}/" in said
    assert {p.suffix for p in own_folder.iterdir()} == {".lock"}
    with monkeypatch.context() as patch:  # and where the libraries unpack
        patch.setattr(datasets.arrow_writer.ArrowWriter, "write_table", full)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "elsewhere")
        assert f"disk full: {tmp_path / 'elsewhere'}: No space left" in fails(3, *command, "--out", tmp_path / "run")


@pytest.mark.parametrize("place", ["a file", "a file/below"])
def test_a_cache_that_is_no_folder_is_told(tmp_path, monkeypatch, place):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOOKFLAT_CACHE", str(tmp_path / place))
    path, *_ = small_set(tmp_path / "a")
    assert "cannot be written to" in (said := told(path))
    assert "name another folder by HOOKFLAT_CACHE" in said


# --- damage -----------------------------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("where", ["folder", "tar"])
def test_a_hostile_pickle_runs_nothing(tmp_path, where):
    batches = cifar10_batches(TRAIN, TEST) | {"data_batch_3": pickle.dumps({"data": Hostile(tmp_path / "ran")})}
    pickle.loads(batches["data_batch_3"])["data"].close()
    (tmp_path / "ran").unlink()  # it works
    path = unpacked(tmp_path / "c", batches) if where == "folder" else tar(tmp_path / "c.tar.gz", batches)
    assert "data_batch_3 is no pickle of arrays: it calls" in told(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_archives_are_named(tmp_path):
    whole = cifar10_tar(tmp_path).read_bytes()
    cut, other = tmp_path / "cut.tar.gz", tmp_path / "other.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    other.write_bytes(b"no tar")
    for path in (cut, other):
        assert f"{path} is damaged" in told(path)
    members = cifar10_binary(TRAIN, TEST)
    members["data_batch_2.bin"] = members["data_batch_2.bin"][:-1]
    assert "data_batch_2.bin is cut off" in told(unpacked(tmp_path / "bin", members))
    assert "has none of the files of CIFAR-10" in told(tar(tmp_path / "empty.tar", {"a": b"b"}))
    batches = cifar10_batches(TRAIN, TEST) | {"data_batch_2": pickle.dumps([1, 2])}
    assert "data_batch_2 is no batch of CIFAR's" in told(unpacked(tmp_path / "py", batches))
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "train_32x32.mat").write_bytes(b"MATLAB 5.0 but not really" * 9)
    assert "train_32x32.mat is no .mat of SVHN's" in told(tmp_path / "svhn")


def test_npz_that_is_no_images_is_told(tmp_path):
    x, y = TRAIN
    folder = tmp_path / "f"
    folder.mkdir()
    np.savez(folder / "train.npz", x=x.astype(np.float32), y=y)
    assert "train.npz: x is float32; images are uint8" in told(folder)
    np.savez(folder / "train.npz", x=x, y=y[:-1])
    assert "15 images, but 14 of y" in told(folder)
    np.savez(folder / "train.npz", x=x.reshape(-1), y=y)
    assert "images are (N, H, W, 3)" in told(folder)
    np.savez(folder / "train.npz", x=x, y=np.array([Hostile(tmp_path / "ran")] * 15))
    assert "is no npz of numbers" in told(folder)
    (folder / "train.npz").write_bytes(b"PK no zip")
    assert "train.npz is no npz" in told(folder)


def test_a_damaged_parquet_is_named(tmp_path):
    path, *_ = small_set(tmp_path)
    file = path / "train-00000.parquet"
    whole = file.read_bytes()
    for damaged in (whole[:-30], b"no parquet at all", b""):
        file.write_bytes(damaged)
        assert "train-00000.parquet is damaged" in told(path)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (bomb(), "too many pixels"),
        (bomb(9000), "claims 9000 x 9000 pixels; the limit are 67,108,864"),
        (png(pictures(1, size=5)[0][0])[:-40], "cannot be decoded"),
        (b"no image", "is no image of a known format"),
        (POSTSCRIPT, "is no image of a known format"),
        (b"", "is no image of a known format"),
        (deep("I;16"), "more than 8 bits a channel"),
        (deep("I"), "more than 8 bits a channel"),
        (deep("F"), "more than 8 bits a channel"),
        (deep_rgb(), "more than 8 bits a channel"),
        (png(pictures(1, size=5)[0][0], "1"), "of Pillow's mode 1, neither gray (L) nor RGB: set channels to 1 or 3"),
        (png(pictures(1, size=5)[0][0], "RGBA"), "of Pillow's mode RGBA"),
        (None, "has no image"),
    ],
    ids=["bomb", "large", "cut", "foreign", "postscript", "empty", "16", "32", "float", "16-rgb", "1", "rgba", "null"],
)
def test_an_image_that_cannot_be_used_is_named_by_its_row(tmp_path, file, reason):
    x, y = pictures(6, size=5, classes=3)
    files = [png(p) for p in x]
    parquet(tmp_path, train=([*files[:4], file, *files[5:]], y), test=(files, y))
    said = told(tmp_path)
    assert "split 'train': row 4 (4.png)" in said or (file is None and "split 'train': row 4" in said)
    assert reason in said


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, 1, None, 1, 2, 0], "row 2 has no label in 'label'"),
        ([0, 1, -3, 1, 2, 0], "row 2 has the label -3 in 'label': negative"),
        ([0, 1, -1, 1, 2, 0], "row 2 has the label -1 in 'label': no label"),
        ([0, 1, 0.5, 1, 2, 0], "row 2 has the label 0.5 in 'label': no class"),
        ([0, 1, float("nan"), 1, 2, 0], "row 2 has the label nan in 'label': no class"),
        ([0, 1, 2**40, 1, 2, 0], "row 2 has the label 1099511627776 in 'label', but there are only 4 different ones"),
        ([0, 1, 10**7, 1, 2, 0], "row 2 has the label 10000000 in 'label', but there are only"),
        (["a", "b", "a", "a", "b", "a"], "labels are whole numbers from 0, but 'label' holds object such as 'a'"),
    ],
    ids=["null", "negative", "none", "fraction", "nan", "huge", "large", "text"],
)
def test_a_label_that_is_no_class_is_named_by_its_row(tmp_path, labels, reason):
    x, y = pictures(6, size=5, classes=3)
    files = [png(p) for p in x]
    parquet(tmp_path, train=(files, labels), test=(files, y))
    assert reason in told(tmp_path, label="label")


def test_how_many_classes_there_are_can_be_said(tmp_path):
    x, _ = pictures(6, size=5, classes=3)
    np.savez(tmp_path / "train.npz", x=x, y=[0, 1, 2, 0, 1, 299])
    np.savez(tmp_path / "test.npz", x=x, y=[0, 1, 2, 0, 1, 2])
    assert "set data.classes to how many there are" in told(tmp_path)
    assert loaded(tmp_path, classes=300).num_classes == 300
    assert "row 5 has the label 299 in 'y': outside the 10 classes" in told(tmp_path, classes=10)


def test_some_of_the_classes_are_numbered_anew(tmp_path):
    label = datasets.ClassLabel(names=[f"n{i}" for i in range(10)])
    splits = {"train": ([png(p) for p in TRAIN[0]], TRAIN[1]), "test": ([png(p) for p in TEST[0]], TEST[1])}
    parquet(tmp_path, label, **splits)
    high, low = int(TRAIN[1][0]), int(next(k for k in TRAIN[1] if k != TRAIN[1][0]))
    data = loaded(tmp_path, classes=[high, f"n{low}"])
    assert (data.num_classes, data.about["names"]) == (2, [f"n{high}", f"n{low}"])
    mine = np.isin(TRAIN[1], [high, low])
    assert_are(data.train, TRAIN[0][mine], (TRAIN[1][mine] == low).astype(int))
    first = loaded(tmp_path, classes=[high, low], train=2)
    assert torch.equal(torch.cat([first.train.x, first.unused(0)]), data.train.x)  # no others among the unused
    each = loaded(tmp_path, classes=[low, high], train=2, balance=True)
    assert sorted(each.train.y.tolist()) == [0, 1]
    assert "data.classes: 'ship' is none of the classes of" in told(tmp_path, classes=["ship", 1])
    assert "by its number and by its name" in told(tmp_path, classes=[high, f"n{high}"])
    count = int(mine.sum())
    assert f"has {count} examples of these classes, not 1000" in told(tmp_path, classes=[high, low], train=1000)


def test_sets_of_different_sizes_without_rows_or_without_a_split_are_told(tmp_path):
    x, y = pictures(6, size=5, classes=3)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "test.npz", x=x[:, :4, :4], y=y)
    assert "the training images are 3x5x5, the test images 3x4x4: set data.size" in told(tmp_path)
    np.savez(tmp_path / "test.npz", x=x[:0], y=y[:0])
    assert "split 'test' has no rows" in told(tmp_path)
    (tmp_path / "test.npz").unlink()
    assert "has no split 'test', only 'train'" in told(tmp_path)
    parquet(tmp_path / "p", train=([png(p) for p in x], y), test=([], []))
    assert "has no rows" in told(tmp_path / "p", label="label", image="img")


def test_a_network_that_does_not_fit_is_told_before_the_first_step(tmp_path):
    np.savez(tmp_path / "train.npz", x=TEST[0][:, :8, :8], y=TEST[1])
    np.savez(tmp_path / "test.npz", x=TEST[0][:, :8, :8], y=TEST[1])
    model = {"name": "timm", "network": "test_vit"}
    tables = {"data": {"name": "images", "path": str(tmp_path)}, "model": model}
    with pytest.raises(UserError, match=r"'timm' does not take the data's images \(3, 8, 8\)"), tiny_run(tables):
        pass


def test_large_members_of_npz_are_mapped_where_they_lie_or_from_an_unpacked_copy(tmp_path, own_folder, monkeypatch):
    monkeypatch.setattr(npz, "MAPPED_FROM", 1000)
    monkeypatch.setattr(archives, "MAPPED_FROM", 1000)
    x, y = TRAIN
    np.savez(tmp_path / "plain.npz", image=x, label=y)
    np.savez_compressed(tmp_path / "packed.npz", image=x, label=y)
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({"data": x, "extrapolated_targets": y}))
    for name, copies in (("plain.npz", 0), ("packed.npz", 1), ("a.pickle", 2)):
        arrays = archives.read_archive(tmp_path / name, ("train",))["train"]
        assert isinstance(arrays.pixels, np.memmap)
        assert np.array_equal(arrays.pixels, x)
        assert list(next(iter(arrays.labels.values()))) == list(y)
        assert len(list(own_folder.glob("*.npz"))) == copies
