"""Tests run on the CPU with one thread: small networks are faster so, and bits repeat."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest
import torch

MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30


def pytest_configure() -> None:
    """Temporary files are in memory where there is room: every checkpoint would wait for the disk."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK) or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return
    if shutil.disk_usage(MEMORY).free > ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_collection_finish() -> None:
    """What is imported stays: collections need not look at it, nor processes forked from here copy it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets.config

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HOOKFLAT_CACHE"] = str(tmp_path_factory.mktemp("hookflat"))


@pytest.fixture
def short_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the package's queries, a quarter of its steps: on both sides, where it is compared with."""
    from pyautoattack import AutoAttack

    plain = AutoAttack.__init__

    def short(self, *arguments, **named):
        plain(self, *arguments, **named)
        self.square.n_queries = 500
        for attack in (self.apgd, self.apgd_targeted, self.fab):
            attack.n_iter = 25

    monkeypatch.setattr(AutoAttack, "__init__", short)


@pytest.fixture(scope="session")
def digits_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Forty test digits that the network below has not seen."""
    from hookflat_plugins.digits import Digits

    test = Digits(train=300, test=40).build_data().test
    return test.x.float() / 255, test.y


@pytest.fixture(scope="session")
def digits_net() -> torch.nn.Module:
    """A small residual network with batch norm, trained on digits for two seconds: about 90 % accurate."""
    from hookflat.functional.networks import small_image_resnet
    from hookflat_plugins.digits import Digits

    train = Digits(train=300, test=40).build_data().train
    x, y = train.x.float() / 255, train.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = small_image_resnet(width=8, blocks=1, channels=1, classes=10, norm="rebn", act="relu")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(8):
            for batch in torch.randperm(300).split(50):
                noisy = (x[batch] + 0.15 * (2 * torch.rand_like(x[batch]) - 1)).clamp(0, 1)
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(noisy), y[batch]).backward()
                optimizer.step()
    net.zero_grad()
    return net.eval()
