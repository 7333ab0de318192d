import socket
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hub_stand_in import stand_in
from huggingface_hub import constants
from PIL import Image as PilImage

from hookflat import UserError
from hookflat.functional.data import Data, Images
from hookflat.functional.examples import Examples
from hookflat.reading import hub
from hookflat.testing import tiny_run

CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10"  # not part of the repository


def images_of(n, classes=3):
    return Images(torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8), torch.arange(n) % classes)


def test_digits_are_split_by_position_and_keep_their_gray_values():
    from sklearn.datasets import load_digits

    with tiny_run({"data": {"name": "digits", "train": 300, "test": 700}}) as run:
        digits = load_digits()
        assert (len(run.data.train), len(run.data.test), run.data.num_classes) == (300, 700, 10)
        assert torch.equal(run.data.train.y, torch.tensor(digits.target[:300]))
        assert torch.equal(run.data.test.y, torch.tensor(digits.target[-700:]))
        x, _ = run.data.test.__getitems__(torch.arange(700))
        assert np.allclose(x[:, 0].numpy(), digits.images[-700:] / 16, atol=0.5 / 255 + 1e-6)


def test_some_digits_are_numbered_anew():
    from sklearn.datasets import load_digits

    digits = load_digits()
    with tiny_run({"data": {"name": "digits", "train": 100, "test": 50, "classes": [7, 3]}}) as run:
        mine = digits.target[np.isin(digits.target, [3, 7])]
        assert run.data.num_classes == 2
        assert run.data.train.y.tolist() == [int(k == 3) for k in mine[:100]]
        assert run.data.test.y.tolist() == [int(k == 3) for k in mine[-50:]]
    with pytest.raises(UserError, match="overlap: there are 362 digits of these classes"):
        tiny_run({"data": {"name": "digits", "train": 300, "test": 100, "classes": [7, 3]}}).__enter__()


def test_holding_out_takes_the_last_examples_and_overlaps_nothing():
    data = Data(images_of(20), images_of(10), 3)
    by_test, by_train = data.hold_out(4, "test"), data.hold_out(5, "train")
    assert torch.equal(torch.cat([by_test.test.x, by_test.holdout.x]), data.test.x)
    assert len(by_test.train) == 20
    assert torch.equal(torch.cat([by_train.train.x, by_train.holdout.x]), data.train.x)
    with pytest.raises(ValueError, match="cannot hold out 10 of 10 test examples"):
        data.hold_out(10, "test")


def test_statistics_are_those_of_the_pixels():
    images = Images(torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8), torch.zeros(5000, dtype=torch.int64))
    mean, std = images.statistics()
    x = images.x.double() / 255
    assert torch.allclose(mean.double(), x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(std.double(), x.std((0, 2, 3), correction=0), atol=1e-6)


def test_wrong_images_and_labels_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        Images(torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="int64"):
        Images(x, torch.zeros(2))
    with pytest.raises(ValueError, match="takes tensors, not ndarray"):
        Images(x.numpy(), torch.zeros(2, dtype=torch.int64))
    assert Images(x, torch.zeros(2, dtype=torch.int32)).y.dtype == torch.int64
    with pytest.raises(ValueError, match=r"labels outside 0\.\.1"):
        Data(images_of(6), images_of(6), 2)


class Ranks:
    """Two processes, one after the other: `reduce` sums what each has."""

    num_processes = 2

    device = torch.device("cpu")

    def __init__(self, process_index):
        self.process_index = process_index


def test_processes_share_examples_each_once():
    parts = [Examples(images_of(7), batch_size=2, accelerator=Ranks(r)) for r in (0, 1)]
    keys = [torch.cat([k for _, _, k in p]).tolist() for p in parts]
    assert sorted(keys[0] + keys[1]) == list(range(7))


def write_folder(root, sizes=((5, 5),), splits=("train", "test")):
    for split in splits:
        for label in ("cat", "dog"):
            for i in range(3):
                folder = root / split / label
                folder.mkdir(parents=True, exist_ok=True)
                pixels = np.full((*sizes[i % len(sizes)], 3), 40 * i + (100 if label == "dog" else 0), dtype=np.uint8)
                PilImage.fromarray(pixels).save(folder / f"{i}.png")


def loaded(**data):
    with tiny_run({"data": {"name": "images"} | data}) as run:
        return run.data


def test_an_image_folder(tmp_path):
    write_folder(tmp_path)
    data = loaded(path=str(tmp_path))
    assert data.num_classes == 2
    assert data.train.x.shape == (6, 3, 5, 5)
    values = {(int(y), int(x[0, 0, 0])) for x, y in zip(data.train.x, data.train.y, strict=True)}
    assert values == {(c, 40 * i + 100 * c) for c in (0, 1) for i in range(3)}


def test_local_parquet_with_its_columns_found_by_type(tmp_path):
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("string"), "img": datasets.Image(), "fine": datasets.ClassLabel(3)}
    )
    for split, n in (("train", 6), ("test", 4)):
        rows = {"id": [str(i) for i in range(n)], "img": [PilImage.new("L", (4, 4), 10 * i) for i in range(n)]}
        table = datasets.Dataset.from_dict(rows | {"fine": [i % 3 for i in range(n)]}, features=features)
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    data = loaded(path=str(tmp_path))
    assert (data.num_classes, data.channels, len(data.test)) == (3, 1, 4)
    assert data.train.x[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]


def fails(message, **data):
    with pytest.raises(UserError) as caught:
        loaded(**data)
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_said(tmp_path):
    fails("data.path = 'nobody/nothing-here' cannot be loaded", path="nobody/nothing-here")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("cannot be loaded", path=str(empty))
    write_folder(tmp_path / "one", splits=("train",))
    fails("has no split 'test'", path=str(tmp_path / "one"))
    write_folder(tmp_path / "sizes", sizes=((5, 5), (4, 6)))
    fails("several sizes", path=str(tmp_path / "sizes"))
    assert loaded(path=str(tmp_path / "sizes"), size=4).train.x.shape == (6, 3, 4, 4)


def test_too_few_examples_for_a_batch_on_every_process():
    with pytest.raises(UserError, match="do not fill one batch"), tiny_run({"data": {"train": 1, "test": 3}}):
        pass


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs a local copy of CIFAR-10")
def test_cifar10_from_parquet():
    data = loaded(path=str(CIFAR10), train=15_000)  # decoding all of them takes half a minute
    assert data.about["train"]["of"] == 50_000
    assert data.train.x.shape == (15_000, 3, 32, 32)
    assert torch.bincount(data.test.y).tolist() == [1000] * 10
    mean, std = data.train.statistics()
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.002)
    assert std.tolist() == pytest.approx([0.2452, 0.2428, 0.2606], abs=1e-3)


def test_more_processes_than_examples_leave_some_without_any():
    import types

    images = Images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    counts = []
    for rank in range(4):
        place = types.SimpleNamespace(process_index=rank, num_processes=4, device=torch.device("cpu"))
        counts.append(len(list(Examples(images, accelerator=place))))
    assert counts == [1, 1, 0, 0]


def test_the_last_examples_are_those_of_the_whole_split_held_out_ones_included():
    images = Images(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.zeros(10).long())
    data = Data(images, images, 1).hold_out(4, "test")
    assert data.taken("test", 3).x.flatten().tolist() == [0, 1, 2]
    assert data.taken("test", 6, "last").x.flatten().tolist() == [4, 5, 6, 7, 8, 9]
    assert data.taken("train", 2, "last").x.flatten().tolist() == [8, 9]
    assert len(data.taken("test", 99, "last")) == 10
    assert Data(images, images, 1).hold_out(4, "train").taken("test", 2, "last").x.flatten().tolist() == [8, 9]


@pytest.fixture
def online(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("online")
def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    """Names that nobody resolves, and hosts that drop what is sent, keep a connection waiting: here for ever."""
    assert hub._PATIENCE <= 2
    monkeypatch.setattr(hub, "_PATIENCE", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: threading.Event().wait())
    began = time.perf_counter()
    with pytest.raises(UserError, match="nothing of that name was downloaded, and the hub does not answer") as told:
        hub.read_sets("some/images", ("train",), "data.path")
    assert time.perf_counter() - began < 1
    for way in ("a local file or folder", "HF_HOME", "HF_HUB_OFFLINE=1"):
        assert way in str(told.value)


@pytest.mark.usefixtures("online")
def test_a_hub_id_of_several_configurations_names_them(monkeypatch):
    def several(path, config):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample")

    for asked in ("_hub_answers", "_on_the_hub"):
        monkeypatch.setattr(hub, asked, lambda *_: True)
    monkeypatch.setattr(datasets, "load_dataset", several)
    with pytest.raises(UserError, match=r"available configs: \['a', 'b'\] \("):
        hub.read_sets("some/images", ("train",), "data.path")


@pytest.mark.usefixtures("online")
def test_whether_the_hub_answers_is_asked_once_and_briefly(monkeypatch, tmp_path):
    """Without network the libraries try for half a minute before they say so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub._hub_answers()
    assert not hub._hub_answers()  # nobody listens there any more
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, config: asked.append(datasets.config.HF_HUB_OFFLINE) or {}
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="nothing of that name was downloaded, and the hub does not answer"):
        hub.read_sets("Some/TinyImages", ("train",), "data.path")
    assert not asked
    (tmp_path / "Some___tiny_images").mkdir()  # as datasets calls it
    hub.read_sets("Some/TinyImages", ("train",), "data.path")
    assert asked == [True]
    assert not datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert hub._hub_answers()


def test_a_name_that_the_hub_does_not_know_is_told_before_datasets_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with stand_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        with pytest.raises(UserError, match="no such data set on the hub"):
            hub.check_there("some/images", "data.path")
        server.repos["some/images"] = {}
        hub.check_there("some/images", "data.path")
    for path in ("some/images.npz", "./images", "a/b/c"):
        with pytest.raises(UserError, match="no such folder or file"):
            hub.check_there(path, "data.path")
