"""Extra data: the files they are published in, the share of every batch, what the records say."""

import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from image_files import parquet, pictures, png, svhn
from test_image_sources import Hostile
from test_streams import trained

from hookflat import UserError
from hookflat.reading import hub
from hookflat.testing import run_recipe, tiny_run

POOL = np.random.default_rng(5).integers(0, 256, (11, 6, 6), dtype=np.uint8)
LABELS = np.arange(11) % 3


@pytest.fixture
def path(tmp_path):
    np.savez(tmp_path / "1m.npz", image=POOL, label=LABELS)
    return tmp_path / "1m.npz"


def extra(path, **options):
    return {"plugins": {"extra_data": {"path": str(path)} | options}}


@pytest.mark.parametrize("fraction", [0.3, 0.7, 1.0])
def test_every_batch_holds_its_share_of_the_pool_with_its_labels(path, fraction):
    known = {image.tobytes(): label for image, label in zip(POOL, LABELS, strict=True)}
    seen = set()
    with tiny_run(extra(path, fraction=fraction)) as run:
        for step in range(run.steps_per_epoch):
            run.step = step
            batch = next(run.batches())
            own = batch.x.clone()
            run.hook.transform_batch(run=run, batch=batch)
            drawn = batch.index == -1
            assert int(drawn.sum()) == int(fraction * 8)
            assert torch.equal(drawn, ~batch.labeled)
            assert torch.equal(batch.x[~drawn], own[~drawn])
            for x, y, target in zip(batch.x[drawn], batch.y[drawn], batch.target[drawn], strict=True):
                key = (255 * x).round().to(torch.uint8).numpy().tobytes()
                assert known[key] == y == target
                seen.add(key)
    assert len(seen) > 3


def test_the_first_images_alone_and_resized(path):
    with tiny_run(extra(path, images=4)) as run:
        assert torch.equal(run.plugins["extra_data"]._images.x[:, 0], torch.from_numpy(POOL[:4]))
    with tiny_run(extra(path, size=6, channels=1)) as run:
        assert run.plugins["extra_data"]._images.shape == (1, 6, 6)


def test_the_pickle_of_carmon_and_svhns_extra_set(tmp_path):
    x, y = pictures(9, size=32)
    file = tmp_path / "ti_500K_pseudo_labeled.pickle"
    file.write_bytes(pickle.dumps({"data": x, "extrapolated_targets": y}))
    svhn(tmp_path / "svhn", train=(x, y), test=(x, y), extra=(x[:5], y[:5]))
    data = {"data": {"name": "images", "path": str(tmp_path / "svhn")}}
    for source, count in ((extra(file), 9), (extra(tmp_path / "svhn", split="extra"), 5)):
        with tiny_run(data | source) as run:
            images = run.plugins["extra_data"]._images
            assert torch.equal(images.x, torch.from_numpy(x[:count]).movedim(3, 1))
            assert images.y.tolist() == list(y[:count])


def test_whatever_datasets_reads_can_be_drawn_from(tmp_path, monkeypatch):
    x, y = pictures(9, size=6, classes=3)
    folder = parquet(tmp_path, extra=([png(p) for p in x], y))
    asked = []

    def hub_set(path, config):
        asked.append((path, config))
        return datasets.DatasetDict(extra=datasets.Dataset.from_parquet(str(folder / "extra-00000.parquet")))

    options = {"split": "extra", "label": "label", "channels": 1}
    with tiny_run(extra(folder, **options)) as run:
        here = run.plugins["extra_data"]._images
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", hub_set)
    with tiny_run(extra("some/images", config="large", **options)) as run:
        there = run.plugins["extra_data"]._images
    assert asked == [("some/images", "large")]
    assert torch.equal(here.x, there.x)
    assert here.x.shape == (9, 1, 6, 6)
    assert here.y.tolist() == there.y.tolist() == list(y)


def test_every_one_of_fifty_million_can_be_drawn(path):
    """float32 tells only 2**24 shares apart."""

    class Many:
        y = torch.zeros(1)
        drawn = torch.zeros(0, dtype=torch.int64)

        def __len__(self):
            return 50_000_000

        def at(self, index, device):
            Many.drawn = torch.cat([Many.drawn, index])
            return torch.zeros(len(index), 1, 6, 6), torch.zeros(len(index), dtype=torch.int64)

    with tiny_run(extra(path)) as run:
        run.plugins["extra_data"]._images = Many()
        for run.step in range(60):
            run.hook.transform_batch(run=run, batch=next(run._batches.of_epoch(0)))
    assert 0 <= Many.drawn.min() < 10**6
    assert 49 * 10**6 < Many.drawn.max() < 50_000_000
    step = 50_000_000 / 2**24  # between those that 24 bits can name
    nameable = ((Many.drawn.double() / step).ceil() * step).floor().long()
    assert (nameable != Many.drawn).float().mean() > 0.5


def test_how_often_images_are_seen_is_in_the_records(path, tmp_path, capsys):
    run_recipe(extra(path, fraction=0.7) | {"data": {"train": 28}, "run": {"epochs": 3}}, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "data.json").read_text())
    assert about["train"]["images"] == 28
    assert sum(about["train"]["of_each_class"]) == 28
    source = about["source"]["extra_data"]
    drawn = 3 * (3 * 5 + 2)  # three epochs of batches of 8, 8, 8 and 4
    assert source["of_a_batch"] == 5
    assert source["seen_on_average"] == pytest.approx(drawn / 11)
    assert source["training_images_seen_on_average"] == pytest.approx((3 * 28 - drawn) / 28)


def test_two_processes_draw_what_one_draws(tmp_path):
    x, y = pictures(28, size=8, classes=3)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "test.npz", x=x[:12], y=y[:12])
    np.savez(tmp_path / "extra.npz", image=x[::-1], y=y[::-1])
    plugins = f'[plugins.extra_data]\npath = "{tmp_path}/extra.npz"\nfraction = 0.4'
    one, two = (trained(tmp_path, f"on{n}", n, path=tmp_path, plugins=plugins) for n in (1, 2))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-5), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "plugins.extra_data.path is not set"),
        ({"path": "/no/such.npz"}, "plugins.extra_data.path = '/no/such.npz' cannot be loaded"),
        ({"images": 99}, "has 11 images, not 99"),
        ({"size": 5}, r"images are \(1, 5, 5\), those of \[data\] \(1, 6, 6\): set plugins.extra_data.size"),
        ({"channels": 3}, r"images are \(3, 6, 6\)"),
        ({"label": "target"}, "set plugins.extra_data.label to one of the columns image, label"),
    ],
)
def test_wrong_extra_data_are_told(path, options, message):
    with pytest.raises(UserError, match=message), tiny_run(extra(**{"path": path} | options)):
        pass


def test_damaged_and_hostile_files_of_extra_data_are_told(tmp_path, path):
    hostile = tmp_path / "ti_500K_pseudo_labeled.pickle"
    hostile.write_bytes(pickle.dumps({"data": Hostile(tmp_path / "ran"), "extrapolated_targets": LABELS}))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(path.read_bytes()[:-40])
    for file, reason in ((hostile, "is no pickle of arrays: it calls"), (cut, "is no npz of numbers")):
        with pytest.raises(UserError, match=f"{file} {reason}"), tiny_run(extra(file)):
            pass
    assert not (tmp_path / "ran").exists()


def test_labels_of_extra_data_are_classes_of_the_data(tmp_path):
    np.savez(tmp_path / "a.npz", image=POOL, label=np.arange(11))
    told = pytest.raises(UserError, match="row 3 has the label 3 in 'label': outside the 3 classes")
    with told, tiny_run(extra(tmp_path / "a.npz")):
        pass
