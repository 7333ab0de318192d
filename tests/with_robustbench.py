"""Where RobustBench's released package is installed: its `load_model`, and its classes against our networks.

    pytest tests/with_robustbench.py     # beside robustbench; the slow test of test_robustbench.py makes such a place

The weights that it loads are the ones of robustbench_downloads.py, where that stands in for gdown.
"""

import copy
from pathlib import Path

import pytest
import torch
from test_field_networks import preact, wrn
from torch import nn

from hookflat import Normalized, evaluate, small_image_resnet
from hookflat.evaluation import robustbench
from hookflat.reading.weights import load_into

WITHOUT = torch.zeros(3), torch.ones(3)


def resnet(blocks, bottleneck):
    return small_image_resnet(64, blocks, 3, 10, "batch", "relu", bottleneck=bottleneck, bias=False)


def dm(depth):
    from robustbench.model_zoo.architectures.dm_wide_resnet import CIFAR10_MEAN, CIFAR10_STD, DMWideResNet

    ours = wrn(depth, 1, same=True, act="silu")
    return DMWideResNet(10, depth, 1, nn.SiLU), Normalized(ours, torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD))


def pairs():
    robustbench.check("robustbench:Carmon2019Unlabeled")  # imports the package
    from robustbench.model_zoo import cifar10
    from robustbench.model_zoo.architectures import resnet as of_resnet
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    def of(net):
        return Normalized(net, *WITHOUT)

    def preact_of(**options):
        return of_resnet.PreActResNet(of_resnet.PreActBlock, [2] * 4, **options)

    small = {"depth": 16, "widen_factor": 1}
    return {
        "wrn-28": lambda: (WideResNet(28, widen_factor=1), of(wrn(28, 1))),
        "wrn-34": lambda: (WideResNet(34, widen_factor=1), of(wrn(34, 1))),
        "trades": lambda: (WideResNet(16, widen_factor=2, sub_block1=True), of(wrn(16, 2))),
        "rice-wrn": lambda: (cifar10.Rice2020OverfittingNet(**small), of(wrn(16, 1))),
        "chen": lambda: (cifar10.Chen2020EfficientNet(**small), of(wrn(16, 1))),
        "augustin": lambda: (cifar10.Augustin2020AdversarialWideNet(**small), of(wrn(16, 1))),
        "dm-28": lambda: dm(28),
        "dm-70": lambda: dm(70),
        "preact": lambda: (preact_of(bn_before_fc=True), of(preact(64, raw_shortcut=True))),
        "preact-out": lambda: (preact_of(bn_before_fc=True, out_shortcut=True), of(preact(64))),
        "wong": lambda: (cifar10.Wong2020FastNet(), of(preact(64, raw_shortcut=True, final_norm=False))),
        "rice-l2": lambda: (cifar10.Rice2020OverfittingNetL2(), of(preact(64))),
        "resnet-18": lambda: (of_resnet.ResNet(of_resnet.BasicBlock, [2] * 4), of(resnet(2, False))),
        "resnet-34": lambda: (of_resnet.ResNet(of_resnet.BasicBlock, [3, 4, 6, 3]), of(resnet((3, 4, 6, 3), False))),
        "engstrom": lambda: (cifar10.Engstrom2019RobustnessNet(), of(resnet((3, 4, 6, 3), True))),
    }


NAMES = ["wrn-28", "wrn-34", "trades", "rice-wrn", "chen", "augustin", "dm-28", "dm-70", "preact", "preact-out", "wong"]
NAMES += ["rice-l2", "resnet-18", "resnet-34", "engstrom"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_its_classes_and_our_networks_give_the_same_logits_on_the_same_weights(name, prefix):
    assert set(NAMES) == set(pairs())
    torch.manual_seed(0)
    theirs, ours = pairs()[name]()
    theirs.train()(torch.rand(16, 3, 32, 32))  # statistics of its own
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    load_into(ours, {prefix + key: value for key, value in theirs.state_dict().items()}, "theirs")
    x = torch.rand(4, 3, 32, 32)
    expected = theirs.eval()(x)
    assert expected.std() > 1e-2
    assert torch.allclose(ours.eval()(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - unused(theirs)


def unused(net):
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith("sub_block1."))


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("Wong2020Fast", "cifar10/Linf"),
        ("cifar10/L2/Rice2020Overfitting", "cifar10/L2"),
        ("cifar10/corruptions/Kireev2021Effectiveness_RLAT", "cifar10/corruptions"),
    ],
)
def test_load_model_runs_to_its_end_and_the_network_is_measured(spec, folder):
    measures = {"steps": 1, "restarts": 1}
    evaluated = evaluate(
        f"robustbench:{spec}",
        data=".",
        measures=["clean_error", "robust_loss"],
        overrides=[f"eval.measures.robust_loss.{name}={value}" for name, value in measures.items()],
    ).results
    values = evaluated.models["last"].test
    assert values["rloss"] > values["clean_loss"]
    assert (Path("models") / folder / f"{spec.rpartition('/')[2]}.pt").exists()


def test_every_leaderboard_is_there():
    for board, least in {
        "cifar10": 70,
        "cifar10/L2": 20,
        "cifar10/corruptions": 15,
        "cifar100": 35,
        "cifar100/corruptions": 10,
        "imagenet": 30,
        "imagenet/corruptions": 10,
    }.items():
        assert len(robustbench.matching(f"robustbench:{board}/*")) >= least


def test_a_file_that_it_downloaded_loads_into_our_network_too(tmp_path):
    net = robustbench.load("robustbench:cifar10/L2/Rice2020Overfitting")
    ours = Normalized(preact(64), *WITHOUT).eval()
    load_into(ours, copy.deepcopy(net.state_dict()), "the package's")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours(x), net(x), atol=1e-5)
    assert ours.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
