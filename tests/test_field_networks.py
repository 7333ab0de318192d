"""The field's residual networks: parameter counts, and the functions of the official code on its own weights."""

import re
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hookflat.errors import UserError
from hookflat.functional.layers import Normalized, RecenteredBatchNorm2d
from hookflat.functional.networks import small_image_resnet
from hookflat.functional.preactivation import PreActNet
from hookflat.reading.weights import _differences, _renamed, load_into
from hookflat.training.fitting import forward_flops
from hookflat_plugins.cifar_resnet import CifarResNet


def wrn(depth, widen, act="relu", **options):
    return PreActNet(16, [16 * widen, 32 * widen, 64 * widen], (depth - 4) // 6, 3, 10, "batch", act, **options)


def cifar(depth, width=8, norm="batch", act="relu"):
    data = types.SimpleNamespace(channels=3, num_classes=10)
    data.train = types.SimpleNamespace(statistics=lambda: (torch.zeros(3), torch.ones(3)))
    return CifarResNet(depth, width, norm, act).build_model(run=types.SimpleNamespace(data=data)).net


def preact(width, **options):
    return PreActNet(width, [width, 2 * width, 4 * width, 8 * width], 2, 3, 10, "batch", "relu", **options)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda: wrn(28, 10), 36_479_194),
        (lambda: wrn(34, 10), 46_160_474),
        (lambda: wrn(34, 20), 184_531_674),
        (lambda: wrn(70, 16), 266_796_506),
        (lambda: preact(64), 11_172_170),
        (lambda: cifar(18, 64), 11_173_962),
        (lambda: cifar(34, 64), 21_282_122),
        (lambda: cifar(50, 64), 23_520_842),
    ],
)
def test_published_parameter_counts(make, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


def test_the_hours_on_paper_of_scaling_md_are_those_of_the_networks():
    """AT at PGD-7, as the page counts it: 18 forward passes an example; 100 TFLOP/s in TF32, 200 in bf16."""
    page = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
    resnet18 = lambda: small_image_resnet(64, 2, 3, 10, "rebn", "relu")
    for name, make in {
        "ResNet-18": resnet18,
        "WRN-28-10": lambda: wrn(28, 10),
        "WRN-34-10": lambda: wrn(34, 10),
    }.items():
        row = re.search(rf"\| {name} \| ([\d.]+) GFLOP \| ([\d.]+) EFLOP \| ([\d.]+) h \| ([\d.]+) h \|", page)
        with torch.device("meta"):
            forward = forward_flops(make().eval(), torch.zeros(1, 3, 32, 32))
        training = 150 * 50_000 * 18 * forward
        expected = forward / 1e9, training / 1e18, training / 1e14 / 3600, training / 2e14 / 3600
        for said, value in zip(row.groups(), expected, strict=True):
            assert float(said) == pytest.approx(value, abs=0.5001 * 10 ** -len(said.partition(".")[2])), (name, said)


# --- layer by layer, as the official code registers them --------------------------------------------------------------


def norm_shapes(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def stages(prefix, plan, block, first=16):
    """`block(name, in, out, stride)` of every block; the plan has (stage's name, width, blocks)."""
    shapes, before = {}, first
    for number, (stage, width, blocks) in enumerate(plan):
        for i in range(blocks):
            shapes |= block(prefix.format(stage=stage, block=i), before, width, 2 if number and i == 0 else 1)
            before = width
    return shapes


def trades_shapes(depth, widen):
    def block(name, before, width, stride):
        shapes = {f"{name}.conv1.weight": (width, before, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
        shapes |= norm_shapes(f"{name}.bn1", before) | norm_shapes(f"{name}.bn2", width)
        return shapes | ({} if before == width else {f"{name}.convShortcut.weight": (width, before, 1, 1)})

    each, width = (depth - 4) // 6, 16 * widen
    shapes = stages("{stage}.layer.{block}", [(f"block{k + 1}", width * 2**k, each) for k in range(3)], block)
    shapes |= stages("{stage}.layer.{block}", [("sub_block1", width, each)], block)  # made and never called
    shapes |= {"conv1.weight": (16, 3, 3, 3), "fc.weight": (10, 4 * width), "fc.bias": (10,)}
    return shapes | norm_shapes("bn1", 4 * width)


def deepmind_shapes(depth, widen):
    def block(name, before, width, stride):
        shapes = {f"{name}.conv_0.weight": (width, before, 3, 3), f"{name}.conv_1.weight": (width, width, 3, 3)}
        shapes |= norm_shapes(f"{name}.batchnorm_0", before) | norm_shapes(f"{name}.batchnorm_1", width)
        return shapes | ({} if before == width else {f"{name}.shortcut.weight": (width, before, 1, 1)})

    each, width = (depth - 4) // 6, 16 * widen
    shapes = stages("layer.{stage}.block.{block}", [(k, width * 2**k, each) for k in range(3)], block)
    shapes |= {"init_conv.weight": (16, 3, 3, 3), "logits.weight": (10, 4 * width), "logits.bias": (10,)}
    return shapes | norm_shapes("batchnorm", 4 * width)


def rice_shapes():
    def block(name, before, width, stride):
        shapes = {f"{name}.conv1.weight": (width, before, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
        shapes |= norm_shapes(f"{name}.bn1", before) | norm_shapes(f"{name}.bn2", width)
        return shapes | ({f"{name}.shortcut.0.weight": (width, before, 1, 1)} if stride > 1 else {})

    shapes = stages("{stage}.{block}", [(f"layer{k + 1}", 64 * 2**k, 2) for k in range(4)], block, first=64)
    shapes |= {"conv1.weight": (64, 3, 3, 3), "linear.weight": (10, 512), "linear.bias": (10,)}
    return shapes | norm_shapes("bn", 512)


def cifar_shapes(blocks, expansion):
    def block(name, before, width, stride):
        planes = width // expansion
        basic, bottleneck = [(planes, before, 3), (planes, planes, 3)], [(planes, before, 1), (planes, planes, 3)]
        by_name = {}
        for n, (out, into, side) in enumerate(basic if expansion == 1 else [*bottleneck, (width, planes, 1)], 1):
            by_name |= {f"{name}.conv{n}.weight": (out, into, side, side)} | norm_shapes(f"{name}.bn{n}", out)
        if stride > 1 or before != width:
            by_name |= {f"{name}.shortcut.0.weight": (width, before, 1, 1)} | norm_shapes(f"{name}.shortcut.1", width)
        return by_name

    plan = [(f"layer{k + 1}", expansion * 64 * 2**k, count) for k, count in enumerate(blocks)]
    by_name = stages("{stage}.{block}", plan, block, first=64)
    by_name |= {"conv1.weight": (64, 3, 3, 3), "linear.weight": (10, 512 * expansion), "linear.bias": (10,)}
    return by_name | norm_shapes("bn1", 64)


@pytest.mark.parametrize(
    ("make", "official"),
    [
        (lambda: wrn(28, 10), trades_shapes(28, 10)),
        (lambda: wrn(34, 10), trades_shapes(34, 10)),
        (lambda: wrn(34, 20), trades_shapes(34, 20)),
        (lambda: wrn(28, 10, same=True), deepmind_shapes(28, 10)),
        (lambda: wrn(70, 16, same=True), deepmind_shapes(70, 16)),
        (lambda: preact(64), rice_shapes()),
        (lambda: cifar(18, 64), cifar_shapes((2, 2, 2, 2), 1)),
        (lambda: cifar(34, 64), cifar_shapes((3, 4, 6, 3), 1)),
        (lambda: cifar(50, 64), cifar_shapes((3, 4, 6, 3), 4)),
    ],
    ids=["trades-28", "trades-34", "trades-34-20", "dm-28", "dm-70", "preact-18", "18", "34", "50"],
)
def test_every_tensor_of_the_official_code_has_its_place_at_full_size(make, official):
    with torch.device("meta"):
        ours, theirs = make().state_dict(), {name: torch.empty(shape) for name, shape in official.items()}
    assert any(not any(_differences(ours, renamed)) for renamed in _renamed(theirs))


# --- the functions ----------------------------------------------------------------------------------------------------


def norm(w, name, x):
    return F.batch_norm(x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))


def random_weights(net, rename):
    """Weights in another's names, none trivial."""
    generator = torch.Generator().manual_seed(0)
    by_name = {}
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            value = 0.2 * torch.randn(value.shape, generator=generator)
            value = value.abs() + 0.5 if key.endswith("running_var") else value
        by_name[rename(key)] = value
    return by_name


def trades_code(w, x):
    """WideResNet of TRADES: the shortcut sees the activation where channels change."""
    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for block in (1, 2, 3):
        for layer in range(2):
            name, stride = f"block{block}.layer.{layer}", 2 if block > 1 and layer == 0 else 1
            active = norm(w, f"{name}.bn1", x).relu()
            out = F.conv2d(active, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(w, f"{name}.bn2", out).relu(), w[f"{name}.conv2.weight"], padding=1)
            short = w.get(f"{name}.convShortcut.weight")
            x = out + (x if short is None else F.conv2d(active, short, stride=stride))
    x = F.avg_pool2d(norm(w, "bn1", x).relu(), 4).flatten(1)
    return F.linear(x, w["fc.weight"], w["fc.bias"])


def trades_names(key):
    stage, *rest = key.removeprefix("stages.").split(".", 1)
    if key.startswith("stages."):
        return f"block{int(stage) + 1}.layer.{rest[0]}".replace("shortcut", "convShortcut")
    return key.replace("bn.", "bn1.")


def deepmind_code(w, x):
    """WideResNet of Gowal et al. in PyTorch: TensorFlow's padding at stride 2."""
    x = F.conv2d(x, w["init_conv.weight"], padding=1)
    for group in range(3):
        for block in range(2):
            name, stride = f"layer.{group}.block.{block}", 2 if group > 0 and block == 0 else 1
            active = norm(w, f"{name}.batchnorm_0", x).relu()
            padded = F.pad(active, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
            out = F.conv2d(padded, w[f"{name}.conv_0.weight"], stride=stride)
            out = F.conv2d(norm(w, f"{name}.batchnorm_1", out).relu(), w[f"{name}.conv_1.weight"], padding=1)
            short = w.get(f"{name}.shortcut.weight")
            x = out + (x if short is None else F.conv2d(active, short, stride=stride))
    x = F.avg_pool2d(norm(w, "batchnorm", x).relu(), 4).flatten(1)
    return F.linear(x, w["logits.weight"], w["logits.bias"])


def deepmind_names(key):
    if key.startswith("stages."):
        _, stage, block, rest = key.split(".", 3)
        names = {"bn1": "batchnorm_0", "bn2": "batchnorm_1", "conv1": "conv_0", "conv2": "conv_1"}
        part, *leaf = rest.split(".")
        return ".".join([f"layer.{stage}.block.{block}", names.get(part, part), *leaf])
    return key.replace("conv1", "init_conv").replace("bn.", "batchnorm.").replace("fc.", "logits.")


def rice_code(w, x, raw):
    """PreActResNet of Rice et al. and RobustBench."""
    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for layer in (1, 2, 3, 4):
        for block in range(2):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            active = norm(w, f"{name}.bn1", x).relu()
            out = F.conv2d(active, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(norm(w, f"{name}.bn2", out).relu(), w[f"{name}.conv2.weight"], padding=1)
            short = w.get(f"{name}.shortcut.0.weight")
            x = out + (x if short is None else F.conv2d(x if raw else active, short, stride=stride))
    x = norm(w, "bn", x).relu().mean((2, 3))
    return F.linear(x, w["linear.weight"], w["linear.bias"])


def rice_names(key):
    stage, *rest = key.removeprefix("stages.").split(".", 1)
    if key.startswith("stages."):
        return f"layer{int(stage) + 1}.{rest[0]}".replace("shortcut", "shortcut.0")
    return key.replace("fc.", "linear.")


def cifar_code(w, x):
    """ResNet of pytorch-cifar, as in MART and RobustBench."""
    x = norm(w, "bn1", F.conv2d(x, w["conv1.weight"], padding=1)).relu()
    for name in sorted({".".join(key.split(".")[:2]) for key in w if key.startswith("layer")}, key=natural):
        first = name.endswith(".0") and not name.startswith("layer1")
        convolutions = [w[key] for n in (1, 2, 3) if (key := f"{name}.conv{n}.weight") in w]
        out = x
        for n, weight in enumerate(convolutions, 1):
            stride = 2 if first and n == len(convolutions) - 1 else 1
            out = norm(w, f"{name}.bn{n}", F.conv2d(out, weight, stride=stride, padding=weight.shape[-1] // 2))
            out = out.relu() if n < len(convolutions) else out
        short = w.get(f"{name}.shortcut.0.weight")
        beside = x if short is None else norm(w, f"{name}.shortcut.1", F.conv2d(x, short, stride=2 if first else 1))
        x = (out + beside).relu()
    return F.linear(x.mean((2, 3)), w["linear.weight"], w["linear.bias"])


def natural(name):
    return [int(part) for part in name.removeprefix("layer").split(".")]


def cifar_names(key):
    return key.replace("downsample", "shortcut").replace("fc.", "linear.")


CODES = {
    "trades": (lambda: wrn(16, 1), trades_names, trades_code, {"sub_block1.layer.0.bn1.weight": torch.ones(16)}),
    "deepmind": (lambda: wrn(16, 1, same=True), deepmind_names, deepmind_code, {}),
    "rice": (lambda: preact(8), rice_names, lambda w, x: rice_code(w, x, False), {}),
    "pytorch-cifar": (lambda: cifar(18), cifar_names, cifar_code, {}),
    "pytorch-cifar, bottlenecks": (lambda: cifar(50), cifar_names, cifar_code, {}),
    "robustbench": (lambda: preact(8, raw_shortcut=True), rice_names, lambda w, x: rice_code(w, x, True), {}),
}


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_official_weights_load_and_give_the_official_logits(name, prefix):
    make, names, code, more = CODES[name]
    net, x = make().eval(), torch.rand(3, 3, 16, 16)
    weights = random_weights(net, names)
    load_into(net, {prefix + k: v for k, v in (weights | more).items()}, "a file")
    expected = code(weights, x)
    assert expected.std() > 1e-3
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std")])
@pytest.mark.parametrize("inner", ["", "model."])
def test_a_normalisation_that_weights_bring_is_kept(names, inner):
    net = Normalized(wrn(10, 1, same=True), torch.zeros(3), torch.ones(3)).eval()
    weights = {inner + k: v for k, v in random_weights(net.net, deepmind_names).items()}
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    own = dict(zip(names, (mean.view(3, 1, 1), std.view(1, 3, 1, 1)), strict=True))
    assert load_into(net, weights | own, "a file") is net
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(net.mean.flatten(), mean)
    inside = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(net(x), net.net(inside), atol=1e-5)
    with pytest.raises(UserError, match="does not fit the network"):
        load_into(net.net, weights | own, "a file")  # nowhere to keep it
    with pytest.raises(UserError, match="mean"):
        load_into(net, weights | own | {names[0]: torch.zeros(1)}, "a file")


@pytest.mark.parametrize("norm", ["batch", "group", "rebn"])
@pytest.mark.parametrize("act", ["relu", "silu", "gelu", "mish"])
def test_every_network_takes_every_normalisation_and_activation(norm, act):
    kinds = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm, "rebn": RecenteredBatchNorm2d}
    for net in (cifar(18, 8, norm, act), cifar(50, 8, norm, act), PreActNet(8, [8, 16], 1, 3, 10, norm, act)):
        types_there = {type(module) for module in net.modules()}
        assert types_there & {*kinds.values()} == {kinds[norm]}
        assert {kind.__name__.lower() for kind in types_there} & {"relu", "silu", "gelu", "mish"} == {act}
        assert net(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_a_missing_tensor_is_still_named():
    net = wrn(10, 1)
    weights = random_weights(net, trades_names)
    del weights["block2.layer.0.convShortcut.weight"]
    with pytest.raises(UserError, match="shortcut"):
        load_into(net, weights, "a file")
