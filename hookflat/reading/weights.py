"""Weights from anywhere into a network: read without running code, unwrapped, and fitted key by key."""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hookflat.errors import UserError
from hookflat.functional.layers import Normalized
from hookflat.terminal import clipped, shortened

WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "basic_net", "backbone")
"""What DataParallel, torch.compile and training scripts put in front of every key."""
_SHOWN = 12

_WIDE = ((r"^block(\d)\.layer\.", "stages.{}."), (r"convShortcut", "shortcut"), (r"^bn1\.", "bn."))
_PREACT = ((r"^layer(\d)\.", "stages.{}."), (r"shortcut\.0", "shortcut"), (r"^linear\.", "fc."))
_DEEPMIND = (
    (r"^layer\.(\d)\.block\.", "stages.{}."),
    (r"^init_conv\.", "conv1."),
    (r"batchnorm_0", "bn1"),
    (r"batchnorm_1", "bn2"),
    (r"conv_1", "conv2"),
    (r"conv_0", "conv1"),
    (r"^batchnorm\.", "bn."),
    (r"^logits\.", "fc."),
)
_RESNET = ((r"^layer(\d)\.", "layer{}."), (r"shortcut\.", "downsample."), (r"^linear\.", "fc."))
FOREIGN = ((_WIDE, 1), (_PREACT, 1), (_DEEPMIND, 0), (_RESNET, 0))
"""What others call the parts of our networks, and from what number they count stages: TRADES and RST; Rice et al., AWP
and RobustBench; Gowal et al., Rebuffi et al. and Wang et al.; pytorch-cifar's ResNet, as in MART and RobustBench."""
NORMALISATIONS = (
    ("mean", "std"),
    ("mu", "sigma"),
    ("normalize.mean", "normalize.std"),
    ("normalizer.new_mean", "normalizer.new_std"),
)
"""What others call the mean and deviation that their networks take off images first."""
_UNUSED = ("sub_block1.",)  # TRADES's code makes a block that it never calls
_TWICE = "attacker."
"""Where MadryLab's robustness has the network and its normalisation a second time."""


def read_weights(file: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a file that `torch.save` wrote.

    The latter is read without executing pickled code. Where it holds several sets of weights (a checkpoint with its
    average, say), `key` chooses. Raises UserError with what to do about files that cannot be read so.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            return _dense(load_file(file), file)
        with warnings.catch_warnings(action="ignore"):  # of formats; what cannot be read is told
            held = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(_more_than_tensors(file, error)) from error
    except Exception as error:  # a file of others', read by parsers that raise what they like
        raise UserError(f"{file} is no file of weights, or a damaged one: {_first_line(error)}") from error
    return _dense(_unnested(held, file, key), file)


def _dense(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights, of which each has a name and holds real numbers of its own. Raises UserError for the first other."""
    for name, tensor in weights.items():
        if not isinstance(name, str):
            raise UserError(f"{file} holds no weights by name: it calls one {shortened(name)}")
        if tensor.is_quantized:
            kind = "quantised"
        elif tensor.layout is not torch.strided or tensor.is_nested:
            kind = "sparse or nested"
        elif tensor.is_meta:
            kind = "without values, on the meta device"
        elif tensor.is_complex():
            kind = "complex"
        else:
            continue
        raise UserError(f"{file}: {shortened(name)} is {kind}: save ordinary tensors of floats")
    return weights


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raises UserError for weights that are not finite as float32: every number measured of them would mean nothing."""
    for name, tensor in weights.items():
        wrong = int((~tensor.detach().float().isfinite()).sum()) if tensor.is_floating_point() else 0
        if wrong:
            raise UserError(f"{source}: {shortened(name)} is not finite in {wrong} of its {tensor.numel()} values")


def load_into(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load `weights` into `network`, or into the network inside its normalisation where they are of that.

    A normalisation that the weights bring becomes that of `network`. Prefixes that wrappers put in front of every key
    are taken off. Returns the module that the weights fitted. Raises UserError with every key that is missing, left
    over or of another shape, and for weights that are not floats or not finite; nothing is loaded then.
    """
    inner = [network.net] if isinstance(network, Normalized) else []
    faults = []
    for target in (network, *inner):
        expected = target.state_dict()
        for candidate in (_uncounted(expected) | given for given in _candidates(weights)):
            missing, left, other = _differences(expected, candidate)
            if not (missing or left or other):
                if not_floats := [
                    k for k, v in expected.items() if v.is_floating_point() > candidate[k].is_floating_point()
                ]:
                    name = not_floats[0]
                    raise UserError(f"{source}: {name} holds {candidate[name].dtype}, not floats")
                check_finite(candidate, source)
                target.load_state_dict(candidate)
                return target
            faults.append((len(missing) + len(left) + len(other), missing, left, other))
    _, missing, left, other = min(faults, key=lambda fault: fault[0])
    parts = [f"missing: {_listed(missing)}", f"left over: {_listed(left)}", f"other shapes: {_listed(other)}"]
    told = "; ".join(p for p, keys in zip(parts, (missing, left, other), strict=True) if keys)
    raise UserError(
        f"{source} does not fit the network ({told}): is it another architecture, or another --set model...? "
        f"It holds {_told(weights)}"
    )


def load_foreign(
    network: nn.Module, weights: Mapping[str, Tensor], source: str, normalize: str = "none", option: str = "normalize ="
) -> None:
    """Load others' `weights` into `network` by `load_into`, and the normalisation they were trained with.

    Where they bring none and `network` has one, that becomes what `normalize` says: "none", "data" (what it is, the
    training set's) or "MEAN,.../STD,...", a number for each channel. Raises UserError, which calls it by `option`,
    where it says anything else, or where weights or network have a normalisation of their own.
    """
    fitted = load_into(network, weights, source)
    if not isinstance(network, Normalized) or fitted is network:
        if normalize not in ("none", "data"):
            raise UserError(f"{option} {normalize}: {source} or its network brings a normalisation of its own")
        return
    if normalize == "data":
        return
    channels = network.mean.numel()
    mean, std = [0.0] * channels, [1.0] * channels
    if normalize != "none":
        try:
            mean, std = ([float(v) for v in part.split(",")] for part in normalize.split("/"))
        except ValueError:
            mean, std = [], []
        if not len(mean) == len(std) == channels or not all(map(math.isfinite, mean + std)):
            raise UserError(
                f"{option} {normalize}: should be none, data, or MEAN,.../STD,... with {channels} numbers each"
            )
        if min(std) <= 0 or max(mean) > 1:
            told = "a deviation is above 0" if min(std) <= 0 else "images are in [0, 1] here: divide both by 255"
            raise UserError(f"{option} {normalize}: {told}")
    for buffer, values in ((network.mean, mean), (network.std, std)):
        buffer.copy_(torch.tensor(values).view_as(buffer))


def _uncounted(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counters of batch norm, which files of before torch 0.4.1 lack; torch does without, too."""
    return {k: torch.zeros_like(v) for k, v in expected.items() if k.endswith("num_batches_tracked")}


def _candidates(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights by every name that they may have in our networks, behind the normalisation that they bring last."""
    for unwrapped in _unwrapped(weights):
        yield from _renamed(unwrapped)
        for mean, std in NORMALISATIONS:
            if {mean, std} <= unwrapped.keys():
                own = {"mean": unwrapped[mean].reshape(1, -1, 1, 1), "std": unwrapped[std].reshape(1, -1, 1, 1)}
                inside = {k: v for k, v in unwrapped.items() if k not in (mean, std)}
                for renamed in (renamed for inner in _unwrapped(inside) for renamed in _renamed(inner)):
                    yield own | {f"net.{k}": v for k, v in renamed.items()}


def _renamed(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights as they are, then as our networks would call them if they are of one of the `FOREIGN`."""
    versions = [weights]
    for patterns, first in FOREIGN:
        if any(re.match(patterns[0][0], key) for key in weights):
            used = {k: v for k, v in weights.items() if not k.startswith(_UNUSED)}
            versions.append({_ours(key, patterns, first): value for key, value in used.items()})
    return versions


def _ours(key: str, patterns: tuple[tuple[str, str], ...], first: int) -> str:
    """Our name of a tensor; the first pattern holds the number of its stage, counted from `first`."""
    (stage, ours), *others = patterns
    key = re.sub(stage, lambda match: ours.format(int(match[1]) - first), key)
    for pattern, ours in others:
        key = re.sub(pattern, ours, key)
    return key


def _unnested(held: Any, file: Path, key: str | None) -> dict[str, Tensor]:
    if not isinstance(held, Mapping):
        what = f"tensor {tuple(held.shape)}" if isinstance(held, Tensor) else type(held).__name__
        raise UserError(f"{file} holds a {what}, not weights by name: save the network's state_dict()")
    if key is not None:
        if not _is_weights(held.get(key)):
            raise UserError(f"{file} has no weights under {key!r} (it has {_listed(map(str, held))})")
        return dict(held[key])
    if _is_weights(held):
        return dict(held)
    names = [name for name, value in held.items() if _is_weights(value)]
    if len(names) == 1:
        return dict(held[names[0]])
    if not names:
        raise UserError(f"{file} holds no weights by name (it has {_held(held)})")
    raise UserError(f"{file} holds several sets of weights: choose one with --key: {', '.join(map(str, names))}")


def _held(held: Mapping[Any, Any]) -> str:
    """The keys of a checkpoint, with what is under each."""
    kinds = (f"tensor {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in held.values())
    return _listed(f"{key}: {kind}" for key, kind in zip(held, kinds, strict=True)) or "nothing"


def _told(weights: Mapping[str, Tensor]) -> str:
    """The first and the last of the tensors, with their shapes."""
    each = [f"{clipped(name)} {tuple(tensor.shape)}" for name, tensor in weights.items()]
    shown = [*each[:3], "...", *each[-2:]] if len(each) > 6 else each
    return f"{len(each)} tensors: {', '.join(shown)}"


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _unwrapped(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights as they are, then with each further prefix of a wrapper taken off."""
    versions = [dict(weights)]
    while True:
        last = versions[-1]
        averaged = {k: v for k, v in last.items() if k != "n_averaged"}  # torch's AveragedModel counts beside it
        if any(k.startswith("model.") for k in averaged):
            averaged = {k: v for k, v in averaged.items() if not k.startswith(_TWICE)}
        heads = {k.split(".", 1)[0] for k in averaged}
        if len(heads) != 1 or not heads <= set(WRAPPERS) or not all("." in k for k in averaged):
            return versions
        versions.append({k.split(".", 1)[1]: v for k, v in averaged.items()})


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    missing = [k for k in expected if k not in given]
    left = [k for k in given if k not in expected]
    shapes = {k: (tuple(given[k].shape), tuple(expected[k].shape)) for k in expected if k in given}
    other = [f"{k} {have} in the file, {want} in the network" for k, (have, want) in shapes.items() if have != want]
    return missing, left, other


def _listed(names: Any) -> str:
    names = [clipped(str(name)) for name in names]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _more_than_tensors(file: Path, error: Exception) -> str:
    """What a refused file holds, and how to save what is wanted of it."""
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not a zip file of torch's, or damaged
        named = []
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    held = f"pickled {_listed(named)}" if named else reason.rstrip(".")
    return (
        f"{file} was not loaded: it holds more than tensors ({held}), and reading that could run code. "
        "If you trust it, save its state_dict alone, where those classes can be imported: of a whole network "
        f"torch.save(torch.load({str(file)!r}, weights_only=False).state_dict(), 'weights.pt'), of a checkpoint with "
        f"more in it torch.save(torch.load({str(file)!r}, weights_only=False)['state_dict'], 'weights.pt'); then give "
        "weights.pt"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() if isinstance(error, SafetensorError | OSError | RuntimeError | ValueError) else []
    return clipped(lines[0], 200) if lines else f"{type(error).__name__}: {clipped(str(error), 200)}"
