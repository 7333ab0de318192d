from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from hookflat import UserError, hookimpl
from hookflat.testing import tiny_run


def built(**model):
    with tiny_run({"model": model}) as run:
        return run.network


@pytest.mark.parametrize("act", ["relu", "silu", "gelu", "mish"])
@pytest.mark.parametrize("norm", ["rebn", "batch", "group"])
def test_resnet_small_is_made_of_what_its_options_say(norm, act):
    net = built(name="resnet_small", norm=norm, act=act, width=8)
    names = {type(m).__name__ for m in net.modules()}
    assert {"rebn": "RecenteredBatchNorm2d", "batch": "BatchNorm2d", "group": "GroupNorm"}[norm] in names
    assert {"relu": "ReLU", "silu": "SiLU", "gelu": "GELU", "mish": "Mish"}[act] in names
    assert net(torch.rand(2, 1, 6, 6)).shape == (2, 3)


def test_weights_start_as_he_normal_with_zero_biases():
    torch.manual_seed(0)
    net = built(name="resnet18")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            assert not module.bias.any()


def test_the_seed_decides_the_initial_weights_and_the_global_generator_does_not():
    torch.manual_seed(5)
    a = built(name="resnet_small")
    torch.manual_seed(6)
    b = built(name="resnet_small")
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with tiny_run({"model": {"name": "resnet_small"}, "run": {"seed": 1}}) as run:
        assert not torch.equal(next(run.network.parameters()), next(a.parameters()))


def test_normalisation_is_inside_and_uses_the_training_sets_statistics():
    with tiny_run() as run:
        x = run.data.train.x.float() / 255
        assert run.network.mean.flatten() == pytest.approx(x.mean().item(), abs=1e-5)
        assert run.network.std.flatten() == pytest.approx(x.std(correction=0).item(), abs=1e-5)


def test_timm_networks_take_classes_channels_activation_and_stem():
    net = built(name="timm", network="resnet18", stem="cifar", act_layer="silu").net
    assert (net.conv1.in_channels, net.conv1.kernel_size, net.conv1.stride) == (1, (3, 3), (1, 1))
    assert isinstance(net.maxpool, nn.Identity)
    assert net.fc.out_features == 3
    assert any(isinstance(m, nn.SiLU) for m in net.modules())
    preact = built(name="timm", network="resnetv2_18", stem="cifar").net
    assert preact.stem.stride == (1, 1)
    vit = built(name="timm", network="vit_tiny_patch16_224", arguments={"img_size": 6, "patch_size": 3}).net
    assert vit(torch.rand(1, 1, 6, 6)).shape == (1, 3)


def test_transformers_of_timm_take_the_data_s_image_size():
    net = built(name="timm", network="vit_tiny_patch16_224", arguments={"patch_size": 3}).net
    assert net.patch_embed.img_size == (6, 6)


def test_pretrained_weights_from_a_file_fit_other_classes_and_channels(tmp_path):
    torch.manual_seed(0)
    published = timm.create_model("resnet10t")
    torch.save(published.state_dict(), tmp_path / "resnet10t.pth")
    net = built(name="timm", network="resnet10t", pretrained=True, weights=str(tmp_path / "resnet10t.pth"))
    assert torch.equal(net.net.layer4[0].conv1.weight, published.layer4[0].conv1.weight)
    stem = published.conv1[0].weight.sum(dim=1, keepdim=True)
    assert torch.allclose(net.net.conv1[0].weight, stem)
    assert net.net.fc.out_features == 3
    assert (net.mean.item(), net.std.item()) == pytest.approx((0.449, 0.226), abs=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"weights": "x.pth"}, "weights are what pretrained = true starts from"),
        ({"weights": "x.pth", "pretrained": True}, "model.weights = 'x.pth': no such file"),
        ({"network": "resnet81"}, "'resnet81' is not a timm network (did you mean"),
        ({"network": "vit_tiny_patch16_224", "stem": "cifar"}, "fits timm's ResNet and ResNetV2 families"),
        ({"network": "resnet18", "arguments": {"wings": 2}}, "timm cannot make 'resnet18'"),
    ],
)
def test_what_timm_cannot_make_is_said(model, message):
    with pytest.raises(UserError) as caught:
        built(name="timm", **model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("act", "function"),
    [
        ("mish", lambda x: x * torch.tanh(torch.log1p(torch.exp(x)))),
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    ],
)
def test_activations_replace_every_relu_by_their_formula_and_keep_the_weights(act, function):
    with tiny_run({"model": {"name": "resnet_small"}}) as run:
        plain = run.network
    with tiny_run({"model": {"name": "resnet_small"}, "plugins": {"activation": {"act": act}}}) as run:
        net = run.network
    assert not any(isinstance(m, nn.ReLU) for m in net.modules())
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), net.parameters(), strict=True))
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    assert torch.allclose(net.net.act1(x), function(x), atol=1e-10)


@dataclass(eq=False)
class Lazy:
    """A network whose weights wait for images."""

    @hookimpl
    def build_model(self):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))


def test_a_lazy_network_is_told():
    with (
        pytest.raises(UserError, match="'lazy' has lazy layers"),
        tiny_run({"model": {"name": "lazy"}}, plugins=[Lazy]),
    ):
        pass


def test_a_network_without_relu_is_told():
    tables = {"model": {"name": "resnet_small", "act": "gelu"}, "plugins": {"activation": {}}}
    with pytest.raises(UserError, match=r"no nn\.ReLU to replace"), tiny_run(tables):
        pass
