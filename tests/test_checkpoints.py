"""Weights from anywhere: what is read, what is refused, and that nothing in a file is run."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hookflat import UserError
from hookflat.functional.layers import Normalized
from hookflat.reading.shapes import classes_of, shapes_in
from hookflat.reading.weights import load_into, read_weights


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))


@pytest.fixture
def net():
    built = network()
    built(torch.rand(2, 1, 6, 6))
    return built


@pytest.fixture
def other():
    built = network(1)
    built(torch.rand(2, 1, 6, 6))
    return built


def same(a, b):
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


NESTS = {
    "bare": lambda net: net.state_dict(),
    "state_dict": lambda net: {"state_dict": net.state_dict(), "epoch": 3, "arch": "resnet"},
    "model_state_dict": lambda net: {"model_state_dict": net.state_dict(), "loss": 0.5},
    "any name": lambda net: {"weights of ours": net.state_dict()},
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled, parallel": lambda net: {f"_orig_mod.module.{k}": v for k, v in net.state_dict().items()},
    "averaged": lambda net: AveragedModel(net).state_dict(),
    "nested and parallel": lambda net: {"model": nn.DataParallel(net).state_dict()},
}


@pytest.mark.parametrize("nest", NESTS)
def test_common_wrappings_are_understood(tmp_path, net, other, nest):
    torch.save(NESTS[nest](net), tmp_path / "w.pt")
    load_into(other, read_weights(tmp_path / "w.pt"), "w.pt")
    assert same(net, other)


def test_counters_of_batch_norm_may_be_missing_as_torch_lets_them(net, other):
    load_into(other, {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}, "old.pt")
    for name, value in other.state_dict().items():
        counts = name.endswith("num_batches_tracked")
        assert torch.equal(value, torch.zeros_like(value) if counts else net.state_dict()[name])
    assert any(name.endswith("num_batches_tracked") for name in other.state_dict())


def test_safetensors_and_the_network_inside_a_normalisation(tmp_path, net, other):
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    outer = Normalized(other, torch.tensor([0.5]), torch.tensor([2.0]))
    assert load_into(outer, read_weights(tmp_path / "w.safetensors"), "w") is other
    assert same(net, other)
    whole = Normalized(net, torch.tensor([0.1]), torch.tensor([3.0]))
    assert load_into(outer, whole.state_dict(), "w") is outer
    assert outer.mean.item() == pytest.approx(0.1)


def test_a_network_that_robustness_wrapped_brings_its_normalisation(net, other):
    """As MadryLab's AttackerModel holds it, the network and its normalisation once more inside its attacker."""
    inner = {f"model.{k}": v for k, v in net.state_dict().items()}
    its_own = {"new_mean": torch.tensor([[[0.4]]]), "new_std": torch.tensor([[[0.2]]])}
    held = {f"normalizer.{k}": v for k, v in its_own.items()} | inner
    held |= {f"attacker.normalize.{k}": v for k, v in its_own.items()} | {f"attacker.{k}": v for k, v in inner.items()}
    outer = Normalized(other, torch.tensor([0.5]), torch.tensor([2.0]))
    assert load_into(outer, {f"module.{k}": v for k, v in held.items()}, "w.pt") is outer
    assert same(net, other)
    assert (outer.mean.item(), outer.std.item()) == (pytest.approx(0.4), pytest.approx(0.2))


def test_several_sets_need_a_choice(tmp_path, net, other):
    torch.save({"model": net.state_dict(), "ema": other.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="choose one with --key: model, ema"):
        read_weights(tmp_path / "w.pt")
    assert torch.equal(read_weights(tmp_path / "w.pt", "ema")["0.weight"], other[0].weight)
    with pytest.raises(UserError, match="no weights under 'nothing'"):
        read_weights(tmp_path / "w.pt", "nothing")


def test_every_key_that_does_not_fit_is_listed_and_nothing_is_loaded(net, other):
    weights = net.state_dict()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    wrong = {"0.weight": weights["0.weight"], "0.bias": torch.zeros(9), "fc.weight": weights["3.weight"]}
    with pytest.raises(UserError) as told:
        load_into(other, wrong, "FILE")
    message = str(told.value)
    assert message.startswith("FILE does not fit the network")
    assert "missing: 1.weight, 1.bias, 1.running_mean, 1.running_var" in message
    assert "left over: fc.weight" in message
    assert "0.bias (9,) in the file, (4,) in the network" in message
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


class Hostile:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, net, how):
    proof, file = tmp_path / "proof", tmp_path / "w.pt"
    hostile = Hostile(f"touch {proof}")
    if how == "pickle":
        file.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile if how == "torch" else {"state_dict": net.state_dict(), "extra": hostile}, file)
    with pytest.raises(UserError, match="was not loaded: it holds more than tensors"):
        read_weights(file)
    assert not proof.exists()


def test_whole_modules_are_refused_with_what_to_do(tmp_path, net):
    torch.save(net, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"save its state_dict alone.*\.state_dict\(\), 'weights.pt'") as caught:
        read_weights(tmp_path / "w.pt")
    assert "pickled torch.nn.modules." in str(caught.value)
    assert "allowlist" not in str(caught.value)


@pytest.mark.parametrize(("names", "classes"), [(("fc",), 7), (("net.head",), 7), (("embedding",), None)])
def test_the_classes_of_foreign_weights(names, classes):
    shapes: dict[str, tuple[int, ...]] = {"conv.weight": (3, 2, 1, 1)}
    for name in names:
        shapes |= {f"{name}.weight": (7, 4), f"{name}.bias": (7,)}
    assert classes_of(shapes) == classes


SAVED = {
    "plain": (torch.save, None),
    "before torch 1.6": (lambda w, f: torch.save(w, f, _use_new_zipfile_serialization=False), None),
    "parameters": (lambda w, f: torch.save({k: nn.Parameter(v, v.is_floating_point()) for k, v in w.items()}, f), None),
    "of a checkpoint": (lambda w, f: torch.save({"epoch": 3, "lr": [0.1], "state_dict": w}, f), None),
    "of several": (lambda w, f: torch.save({"net": w, "ema": w | {"more": torch.ones(1)}}, f), "net"),
    "safetensors": (save_file, None),
}


@pytest.mark.parametrize(("save", "key"), SAVED.values(), ids=SAVED)
def test_shapes_without_torch_are_those_of_the_weights(save, key, tmp_path, net):
    file = tmp_path / ("w.safetensors" if save is save_file else "w.pt")
    save(net.state_dict(), file)
    assert shapes_in(file, key) == {name: tuple(t.shape) for name, t in read_weights(file, key).items()}


def test_what_has_no_shapes_by_name_has_none_and_nothing_of_it_runs(tmp_path, net):
    proof, file = tmp_path / "ran", tmp_path / "w.pt"
    for held in (net, [net.state_dict()], {"a": net.state_dict(), "b": net.state_dict()}, {"epoch": 3}):
        torch.save(held, file)
        assert shapes_in(file) == {}
    for protocol in (2, 5):
        file.write_bytes(pickle.dumps(Hostile(f"touch {proof}"), protocol))
        assert shapes_in(file) == {}
    torch.save({"w": torch.ones(2), "x": Hostile(f"touch {proof}")}, file)
    assert shapes_in(file) == {}
    assert not proof.exists()
    for content in (b"", b"PK", b"x" * 100):
        file.write_bytes(content)
        assert shapes_in(file) == {}


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(UserError, match=r"no file of weights|was not loaded"):
            read_weights(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_weights(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"holds no weights by name \(it has epoch: int\)"):
        read_weights(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.to_sparse(), "0.weight' is sparse or nested"),
        (lambda w: w.to("meta"), "0.weight' is without values, on the meta device"),
        (lambda w: w.to(torch.complex64), "0.weight' is complex"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "0.weight' is quantised"),
        (lambda w: (9 * w).to(torch.int8), "0.weight holds torch.int8, not floats"),
        (lambda w: w > 0, "0.weight holds torch.bool, not floats"),
        (lambda w: w.log(), "0.weight' is not finite in [0-9]+ of its 36 values"),
        (lambda w: w.double() * 1e300, "0.weight' is not finite in 36 of its 36 values"),
        (lambda w: torch.zeros(()).expand(10**6, 10**6), r"0.weight \(1000000, 1000000\) in the file"),
    ],
)
def test_tensors_that_are_no_weights_are_named_and_nothing_is_loaded(tmp_path, net, other, change, told):
    before = {k: v.clone() for k, v in other.state_dict().items()}
    torch.save(net.state_dict() | {"0.weight": change(net[0].weight.detach())}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=told):
        load_into(other, read_weights(tmp_path / "w.pt"), "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_weights_are_called_by_names(tmp_path, net):
    torch.save(dict(enumerate(net.state_dict().values())), tmp_path / "w.pt")
    with pytest.raises(UserError, match="holds no weights by name: it calls one 0"):
        read_weights(tmp_path / "w.pt")


def test_half_precision_doubles_and_counters_of_any_type_are_weights(net, other):
    for dtype in (torch.float16, torch.float64):
        load_into(other, {k: v.to(dtype) for k, v in net.state_dict().items()}, "w")
        assert torch.allclose(net[0].weight, other[0].weight, atol=1e-3)
