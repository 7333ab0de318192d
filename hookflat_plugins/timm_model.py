"""Any network of timm."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from hookflat import UserError, hookimpl, nearest

if TYPE_CHECKING:
    from torch import nn

    from hookflat import Run

Stem = Literal["imagenet", "cifar", "convolutional"]


@dataclass(eq=False)
class TimmModel:
    """Any timm network by name, input normalisation inside, so that attacks live in [0, 1].

    Normalises by the training set's statistics; pretrained networks by the ones they were trained with, by their mean
    over the channels where the data has another number. Networks that are made for one image size (transformers) are
    made for the data's.

    The stem "convolutional" has 3x3 convolutions of stride 2, each with a layer norm and a GELU, in place of the one
    convolution that cuts a ViT's or a ConvNeXt's image into patches; its widths double up to the network's. timm has
    no weights of it: it starts at random, also where the rest is pretrained, unless the file `weights` has it.
    """

    paper: ClassVar[str] = (
        "Wightman 2019, github.com/huggingface/pytorch-image-models; convolutional stems of ViT-S and ConvNeXt-T: "
        "Singh et al. 2023, arXiv 2303.01870"
    )

    network: Annotated[str, Field(description="timm's name, such as resnet18 or vit_tiny_patch16_224")] = "resnet18"
    act_layer: Annotated[str | None, Field(description="activation by timm's name (silu, gelu, mish)")] = None
    stem: Annotated[
        Stem, Field(description="cifar: 3x3 of stride 1, no pooling (ResNet, ResNetV2); convolutional: ViT, ConvNeXt")
    ] = "imagenet"
    patch_size: Annotated[int, Field(ge=0, description="pixels a side of a ViT's patches; 0: the network's own")] = 0
    checkpointing: Annotated[
        bool, Field(description="recompute activations in passes back: less memory, more time (where timm can)")
    ] = False
    pretrained: Annotated[bool, Field(description="start from timm's published weights")] = False
    weights: Annotated[str, Field(description="file of these, in place of timm's download; with pretrained")] = ""
    arguments: Annotated[dict[str, Any], Field(description="more for timm.create_model")] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weights and not self.pretrained:
            raise ValueError("weights are what pretrained = true starts from: set that, or leave them out")
        if "timm" not in sys.modules and self.network.partition(".")[0] not in _names():
            raise ValueError(f"network = {self.network!r} is not a timm network{_near(self.network, _names())}")

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        import timm

        from hookflat import Normalized

        if not timm.is_model(self.network):
            hint = _near(self.network, timm.list_models())
            raise UserError(f"model.network = {self.network!r} is not a timm network{hint}")
        config = timm.get_pretrained_cfg(self.network)
        arguments: dict[str, Any] = dict(self.arguments)
        if config and config.fixed_input_size and config.input_size[1:] != run.data.train.shape[1:]:
            arguments = {"img_size": run.data.train.shape[1:]} | arguments
        if self.patch_size:
            arguments["patch_size"] = self.patch_size
        if self.weights:
            if not Path(self.weights).is_file():
                raise UserError(f"model.weights = {self.weights!r}: no such file")
            arguments["pretrained_cfg_overlay"] = {"file": self.weights}
        if self.act_layer:
            arguments["act_layer"] = self.act_layer
        try:
            net = timm.create_model(
                self.network,
                pretrained=self.pretrained,
                num_classes=run.data.num_classes,
                in_chans=run.data.channels,
                **arguments,
            )
        except (TypeError, ValueError, KeyError, AssertionError, OSError, RuntimeError, UnpicklingError) as error:
            raise UserError(f"model: timm cannot make {self.network!r}: {error}") from error
        if self.stem == "cifar":
            _cifar_stem(net, self.network, run.data.channels)
        if self.stem == "convolutional":
            stem = _convolutional_stem(net, self.network, run.data.channels)
            if self.pretrained:
                _load_stem(net, stem, self.weights)
        if self.checkpointing:
            _checkpointed(net, self.network)
        return Normalized(net, *self._statistics(run, net))

    def _statistics(self, run: Run, net: Any) -> Any:
        if not self.pretrained:
            return run.data.train.statistics()
        import torch

        both = torch.tensor(net.pretrained_cfg["mean"]), torch.tensor(net.pretrained_cfg["std"])
        channels = run.data.channels
        return both if len(both[0]) == channels else [values.mean().expand(channels) for values in both]


def _near(name: str, names: list[str]) -> str:
    """The nearest name, where one is near; the whole list is too long."""
    hint = nearest(name, names)
    return hint if "did you mean" in hint else " (python -c 'import timm; print(timm.list_models())' lists them)"


@cache
def _names() -> list[str]:
    """timm's names as its own files register them: importing it takes seconds."""
    package = find_spec("timm")
    assert package is not None
    assert package.origin is not None
    files = Path(package.origin).parent.glob("models/*.py")
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    registered = re.findall(r"^@register_model\s*\ndef (\w+)", source, re.M)
    renamed = re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", source, re.S)
    return registered + re.findall(r"'(\w+)':", "\n".join(renamed))


def _cifar_stem(net: Any, name: str, channels: int) -> None:
    """The stem for 32x32 images: 3x3 convolution of stride 1, no pooling."""
    from timm.models import ResNet, ResNetV2
    from torch import nn

    if isinstance(net, ResNet):
        net.conv1 = nn.Conv2d(channels, net.bn1.num_features, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif isinstance(net, ResNetV2) and isinstance(old := getattr(net.stem, "conv", None), nn.Conv2d):
        net.stem = cast(Any, nn.Conv2d(channels, old.out_channels, 3, padding=1, bias=False))
    else:
        raise UserError(f'model.stem = "cifar" fits timm\'s ResNet and ResNetV2 families, not {name!r}')


def _convolutional_stem(net: Any, name: str, channels: int) -> nn.Module:
    """Convolutions that halve the image until it has a value for each patch, put into the network."""
    from timm.models import ConvNeXt, VisionTransformer
    from torch import nn

    patches = net.patch_embed.proj if isinstance(net, VisionTransformer) else None
    patches = net.stem[0] if isinstance(net, ConvNeXt) else patches
    if not isinstance(patches, nn.Conv2d):
        raise UserError(f'model.stem = "convolutional" fits timm\'s VisionTransformer and ConvNeXt, not {name!r}')
    width, side = patches.out_channels, patches.stride[0]
    halvings = side.bit_length() - 1
    if side != 2**halvings or width % 2**halvings or not halvings:
        raise UserError(f'model.stem = "convolutional" halves images: patches of {side} pixels are no power of two')
    widths = [channels, *(width >> i for i in reversed(range(halvings)))]
    layers = [layer for before, after in itertools.pairwise(widths) for layer in _halving(before, after)]
    if isinstance(net, ConvNeXt):
        stem = net.stem = nn.Sequential(*layers)
    else:
        stem = nn.Sequential(*layers, nn.Conv2d(width, width, 1))
        net.patch_embed.proj = cast(Any, stem)
    return stem


def _load_stem(net: Any, stem: Any, file: str) -> None:
    """Its tensors from the file of weights; where that has none, or other ones, it is `fresh`."""
    from timm.models import load_state_dict

    place = next(name for name, module in net.named_modules() if module is stem)
    given = load_state_dict(file) if file else {}
    own = {name: given[f"{place}.{name}"] for name in stem.state_dict() if f"{place}.{name}" in given}
    shapes, wanted = ({name: t.shape for name, t in tensors.items()} for tensors in (own, stem.state_dict()))
    stem.fresh = shapes != wanted
    if not stem.fresh:
        stem.load_state_dict(own)


def _halving(before: int, after: int) -> list[nn.Module]:
    from timm.layers import LayerNorm2d
    from torch import nn

    return [nn.Conv2d(before, after, 3, stride=2, padding=1), LayerNorm2d(after), nn.GELU()]


def _checkpointed(net: Any, name: str) -> None:
    try:
        net.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:
        raise UserError(f"model.checkpointing: timm cannot do without the activations of {name!r}") from error
