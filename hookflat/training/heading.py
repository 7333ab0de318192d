"""What a run says before it begins: the recipe in a few lines, device, processes, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hookflat.functional.layers import Normalized
from hookflat.recipe.options import as_table
from hookflat.training.console import short
from hookflat.training.run import Run


def say_training(run: Run, *, resumed: bool) -> None:
    """What will be trained."""
    recipe, data, options, say = run.recipe, run.data, run.recipe.run, run.console.say
    parameters = sum(p.numel() for p in run.network.parameters())
    held = f", {len(data.holdout)} held out" if data.holdout else ""
    attack = recipe.slots["attack"]
    threads = "" if run.device.type != "cpu" else f", {torch.get_num_threads()} thread(s) each"
    slots = [f"{slot} {recipe.slot_names[slot]}" for slot in ("loss", "optimizer", "schedule")]
    say(f"{recipe.name}: {', '.join([*slots, *recipe.plugins])}")
    say(f"  data     {recipe.slot_names['data']}: {len(data.train)} training, {len(data.test)} test images{held}, "
        f"{_size(run)}, {data.num_classes} classes")  # fmt: skip
    say(f"  model    {recipe.slot_names['model']}, {parameters:,} parameters, {_normalisation(run.network)}")
    chosen = [f"{k} {short(v)}" for k, v in _chosen(attack).items()]
    say(f"  attack   {', '.join([recipe.slot_names['attack'], *chosen])}")
    say(f"  measures {recipe.eval.norm} eps {short(recipe.eval.eps)}, step_size {short(recipe.eval.step_size)}")
    for line in _stages(run):
        say(line)
    scaled = f" ({options.epochs} x {options.epochs_factor:g})" if run.epochs != options.epochs else ""
    say(f"  training {run.epochs} epochs{scaled} of {run.steps_per_epoch} steps, batch {run.batch_size}, "
        f"{options.precision}, seed {options.seed}")  # fmt: skip
    say(f"  device   {run.device}, {run.processes} process(es){threads}")
    say(f"  folder   {run.folder.path}" + (f", resumed after step {run.step}" if resumed else ""))


def say_evaluation(run: Run, model: str) -> None:
    """What will be measured, on what."""
    recipe, data, say = run.recipe, run.data, run.console.say
    say(f"{model}" + (f": {recipe.slot_names['model']}" if "model" in recipe.slot_names else ""))
    say(f"  data     {recipe.slot_names['data']}: {len(data.train)} training, {len(data.test)} test images, "
        f"{_size(run)}, {data.num_classes} classes")  # fmt: skip
    say(
        f"  measures {recipe.eval.norm} eps {short(recipe.eval.eps)}, step_size {short(recipe.eval.step_size)}, "
        f"seed {recipe.run.seed}"
    )
    for line in _stages(run):
        say(line)
    say(f"  device   {run.device}, {run.processes} process(es)")
    say(f"  folder   {run.folder.path}")


def _normalisation(network: nn.Module) -> str:
    """What the network takes off images first."""
    for module in network.modules():
        if isinstance(module, Normalized):
            mean, std = (
                " ".join(f"{v:.3g}" for v in values.flatten().tolist()) for values in (module.mean, module.std)
            )
            return f"normalised by mean {mean}, std {std}"
    return "no normalisation around it"


def _stages(run: Run) -> Iterator[str]:
    """The protocol, a line for each stage."""
    for name, stage in run.recipe.stages.items():
        measures, splits = ", ".join(run.recipe.measures[name]), " and ".join(stage.splits)
        when = f"every {stage.every:g}" if stage.every else "at the end"
        yield f"           {name}: {measures}; {when}, on {stage.examples} {splits} examples"


def _size(run: Run) -> str:
    return "x".join(map(str, run.data.test.shape))


def _chosen(plugin: Any) -> dict[str, Any]:
    """The options of a plugin that are not its defaults."""
    defaults = as_table(type(plugin)())
    return {k: v for k, v in as_table(plugin).items() if v != defaults.get(k)}
