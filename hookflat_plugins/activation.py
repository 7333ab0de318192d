"""Another activation in place of every ReLU."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from hookflat import UserError, hookimpl

_ACTIVATIONS = {"mish": nn.Mish, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU, "softplus": nn.Softplus}


@dataclass(eq=False)
class Activation:
    """Another activation in place of every ReLU of any network; initialisation and learning rate stay.

    MiSH: x tanh(softplus(x)); SiLU: x sigmoid(x); GELU: the exact one, by the error function.
    """

    paper: ClassVar[str] = "Misra 2019, arXiv 1908.08681; Elfwing et al. 2018, arXiv 1702.03118; Hendrycks, Gimpel 2016"
    kind: ClassVar[str] = "activation"

    act: Annotated[Literal["mish", "silu", "gelu", "elu", "softplus"], Field(description="which")] = "mish"

    @hookimpl(wrapper=True)
    def build_model(self) -> Generator[None, nn.Module, nn.Module]:
        net = yield
        replaced = 0
        for module in list(net.modules()):
            for name, child in list(module._modules.items()):  # one module may stand in several places
                if isinstance(child, nn.ReLU):
                    setattr(module, name, _ACTIVATIONS[self.act]())
                    replaced += 1
        if not replaced:
            raise UserError("plugins.activation: the network has no nn.ReLU to replace; set its own activation instead")
        return net
