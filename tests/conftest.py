"""Tests run on the CPU with one thread: small networks are faster so, and bits repeat."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets.config

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["HOOKFLAT_CACHE"] = str(tmp_path_factory.mktemp("hookflat"))


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
