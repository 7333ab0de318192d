"""Training that starts from trained weights: fine-tuning."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from hookflat import RunFolder, UserError, hookimpl, load_foreign, read_weights


@dataclass(eq=False)
class StartFrom:
    """The training begins with the weights of a network trained before, a run's or a file's, not with random ones.

    They are loaded into the network of `[model]`, of the same architecture and classes; files may be of the formats
    that `hookflat eval` reads. What other plugins add to it (self-supervision's head) begins as without. The distance
    from the initial weights is that from these, so that measuring the run later on asks for them, too.
    """

    kind: ClassVar[str] = "tool"

    weights: Annotated[str, Field(description="folder of a run, or a file of weights")] = "runs/at-0"
    which: Annotated[
        str,
        Field(pattern=r"^(last|best|live|[0-9]{1,9})$", description="of a run: last, best, live or an epoch's number"),
    ] = "last"
    key: Annotated[str, Field(description="of a file: which weights, where it holds several")] = ""
    normalize: Annotated[
        str, Field(description='of a file without a normalisation: "none", "data" or "MEAN,.../STD,..."')
    ] = "none"

    @hookimpl(wrapper=True, trylast=True)  # before plugins that add parts to the network
    def build_model(self) -> Generator[None, nn.Module, nn.Module]:
        network = yield
        place, source = Path(self.weights), f"plugins.start_from.weights = {self.weights!r}"
        if not place.exists():
            raise UserError(
                f"{source}: neither a run's folder nor a file. A run that is complete is measured without it by "
                "--set plugins.start_from.enabled=false, its distance from the initial weights then from random ones"
            )
        is_run, key = place.is_dir(), self.key or None
        weights = RunFolder(place).load_network(self.which)[0] if is_run else read_weights(place, key)
        load_foreign(network, weights, source, self.normalize, "plugins.start_from.normalize =")
        return network
