"""What a run says before it begins: the recipe in a few lines, device, processes, parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hookflat.functional.data import Data
from hookflat.functional.layers import Normalized
from hookflat.recipe.options import as_table, default_table
from hookflat.training.console import short
from hookflat.training.inner_attack import InnerAttack
from hookflat.training.run import Run


def say_training(run: Run, *, resumed: bool) -> None:
    """What will be trained."""
    recipe, data, options, say = run.recipe, run.data, run.recipe.run, run.console.say
    held = f", {len(data.holdout)} held out" if data.holdout else ""
    attack = recipe.slots["attack"]
    threads = "" if run.device.type != "cpu" else f", {torch.get_num_threads()} thread(s) each"
    slots = [f"{slot} {recipe.slot_names[slot]}" for slot in ("loss", "optimizer", "schedule")]
    say(f"{recipe.name}: {', '.join([*slots, *recipe.plugins])}")
    say(f"  data     {recipe.slot_names['data']}: {len(data.train)} training, {len(data.test)} test images{held}, "
        f"{_size(run)}, {data.num_classes} classes")  # fmt: skip
    for line in _of_data(data):
        say(line)
    say(f"  model    {_model(run)}, {_normalisation(run.network)}")
    say(f"  attack   {', '.join([recipe.slot_names['attack'], *_chosen(attack)])}{_short_of_it(attack)}")
    say(f"  measures {recipe.eval.norm} eps {short(recipe.eval.eps)}, step_size {short(recipe.eval.step_size)}")
    for line in _stages(run):
        say(line)
    scaled = f" ({options.epochs} x {options.epochs_factor:g})" if run.epochs != options.epochs else ""
    say(f"  training {run.epochs} epochs{scaled} of {run.steps_per_epoch} steps, batch {run.batch_size}, "
        f"{options.precision}, seed {options.seed}")  # fmt: skip
    say(f"  device   {run.device}, {run.processes} process(es){threads}")
    if not run.trial:
        say(f"  folder   {run.folder.path}" + (f", resumed after step {run.step}" if resumed else ""))


def say_evaluation(run: Run, model: str, normalize: str | None = None) -> None:
    """What will be measured, on what; `normalize`: what weights of a file will take off images."""
    recipe, data, say = run.recipe, run.data, run.console.say
    say(model)
    if "model" in recipe.slot_names:
        say(f"  model    {_model(run)}, " + (f"--normalize {normalize}" if normalize else _normalisation(run.network)))
    say(f"  data     {recipe.slot_names['data']}: {len(data.train)} training, {len(data.test)} test images, "
        f"{_size(run)}, {data.num_classes} classes")  # fmt: skip
    for line in _of_data(data):
        say(line)
    say(
        f"  measures {recipe.eval.norm} eps {short(recipe.eval.eps)}, step_size {short(recipe.eval.step_size)}, "
        f"seed {recipe.run.seed}"
    )
    for line in _stages(run, trained=False):
        say(line)
    say(f"  device   {run.device}, {run.processes} process(es)")
    say(f"  folder   {run.folder.path}")


def _of_data(data: Data) -> Iterator[str]:
    """What numbers may suffer from: classes without images, and first images that are all of one class."""
    parts = {"training": data.train, "test": data.test} | ({"held-out": data.holdout} if data.holdout else {})
    for name, images in parts.items():
        if len(images) < 10 * data.num_classes:
            continue
        of_each = torch.bincount(images.y.cpu(), minlength=data.num_classes)
        if lacking := (of_each == 0).nonzero().flatten().tolist():
            shown = ", ".join(map(str, lacking[:6])) + (" ..." if len(lacking) > 6 else "")
            yield f"  note     no {name} image is of class {shown}"
        if images.y.diff().count_nonzero() < data.num_classes:
            yield f"  note     {name} images come class by class, and measures take the first: shuffle them once"


def _model(run: Run) -> str:
    """Its plugin, which of its networks, what was chosen of its other options, and how large it is."""
    recipe, parameters = run.recipe, sum(p.numel() for p in run.network.parameters())
    plugin, named = recipe.slots["model"], recipe.slot_names["model"]
    which = [getattr(plugin, "network", "")]
    options = [option for option in _chosen(plugin) if not option.startswith("network ")]
    return f"{', '.join(filter(None, [named, *which, *options]))}, {parameters:,} parameters"


def _normalisation(network: nn.Module) -> str:
    """What the network takes off images first."""
    for module in network.modules():
        if isinstance(module, Normalized):
            mean, std = (
                " ".join(f"{v:.3g}" for v in values.flatten().tolist()) for values in (module.mean, module.std)
            )
            return f"normalised by mean {mean}, std {std}"
    return "no normalisation around it"


def _stages(run: Run, *, trained: bool = True) -> Iterator[str]:
    """The protocol, a line for each stage, and when it is its turn in a training."""
    for name, stage in run.recipe.stages.items():
        sizes = {split: run.measurements.size(split, stage) for split in stage.splits}
        of_each = [f"{size} {split}" for split, size in sizes.items()]
        on = f"{sizes[stage.splits[0]]} {' and '.join(sizes)}" if len({*sizes.values()}) == 1 else " and ".join(of_each)
        when = f"{_period(stage.every)}, " if trained else ""
        yield f"           {name}: {', '.join(run.recipe.measures[name])}; {when}on {on} examples"


def _period(every: float | None) -> str:
    if every is None:
        return "at the end"
    if every < 1:
        return f"every {every:g} of the training"
    return "every epoch" if every == 1 else f"every {every:g} epochs"


def _short_of_it(attack: Any) -> str:
    """A remark on an attack that cannot use its radius."""
    reach = attack.reach if isinstance(attack, InnerAttack) else 0
    return f"; {attack.steps} steps reach {reach:.0%} of eps from where they start" if 0 < reach < 0.999 else ""


def _size(run: Run) -> str:
    return "x".join(map(str, run.data.test.shape))


def _chosen(plugin: Any) -> list[str]:
    """The options of a plugin that are not its defaults."""
    defaults = default_table(type(plugin))
    return [f"{k} {short(v)}" for k, v in as_table(plugin).items() if v != defaults.get(k)]
