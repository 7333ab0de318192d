"""For authors of plugins: a tiny network and data, `run_recipe`, and the contract that every plugin must keep.

    @pytest.mark.parametrize("check", hookflat.testing.CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check("my_plugin")

Everything runs on the CPU in seconds, on a machine with a GPU too (`ACCELERATE_USE_CPU` is set where nobody set it).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from hookflat.errors import TrainingFailed
from hookflat.functional import seeds
from hookflat.functional.brackets import draws_undone
from hookflat.functional.data import Data, Images
from hookflat.functional.examples import Examples
from hookflat.functional.layers import Normalized
from hookflat.functional.networks import NORMS
from hookflat.functional.threats import Threat
from hookflat.hookspecs import hookimpl
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.options import InvalidOptions, build
from hookflat.training import checkpoints, loop
from hookflat.training.entry import FinishedRun, run
from hookflat.training.run import Run
from hookflat.training.subject import Subject

os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # bits repeat there


@dataclass(eq=False)
class TinyData:
    """Noisy images of three classes, gray: class k has a bright band of rows."""

    kind: ClassVar[str] = "test"

    train: int = 24
    test: int = 12
    size: int = 6

    @hookimpl
    def build_data(self) -> Data:
        """Both splits, the same every time."""
        return Data(self._split("train", self.train), self._split("test", self.test), 3)

    def _split(self, name: str, count: int) -> Images:
        y = torch.arange(count) % 3
        noise = seeds.uniform(torch.arange(count), (1, self.size, self.size), seeds.derive_seed(name))
        band = torch.arange(self.size)[:, None] * 3 // self.size == y[:, None, None, None]
        return Images((255 * (0.5 * noise + 0.4 * band)).to(torch.uint8), y)


@dataclass(eq=False)
class TinyModel:
    """One convolution, a norm, an activation and a linear layer."""

    kind: ClassVar[str] = "test"

    width: int = 4
    norm: str = "rebn"

    @hookimpl
    def build_model(self, run: Run) -> nn.Module:
        """The network, behind the normalisation of its input."""
        net = nn.Sequential(
            nn.Conv2d(run.data.channels, self.width, 3, padding=1),
            NORMS[self.norm](self.width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * self.width, run.data.num_classes),
        )
        return Normalized(net, *run.data.train.statistics())


TINY: dict[str, Any] = {
    "data": {"name": "tiny_data"},
    "model": {"name": "tiny_model"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "multistep"},
    "attack": {"name": "pgd", "eps": 0.1, "step_size": 0.05, "steps": 2},
    "loss": {"name": "at"},
    "run": {"epochs": 2, "batch_size": 8, "threads": 1},
    "eval": {
        "eps": 0.1,
        "step_size": 0.05,
        "curves": {"every": 1, "robust_loss": {"steps": 2, "restarts": 1}},
        "final": {"clean_error": {}},
    },
}
"""A recipe that trains for six steps."""


def recipe(tables: dict[str, Any] | None = None) -> dict[str, Any]:
    """`TINY` with `tables` laid over it; a slot with another `name` is replaced."""

    def lay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        renamed = "name" in above and above["name"] != below.get("name")
        merged = {} if renamed else dict(below)
        for key, value in above.items():
            merged[key] = lay(below.get(key, {}), value) if isinstance(value, dict) else value
        return merged

    return lay(TINY, tables or {})


def run_recipe(tables: dict[str, Any] | None, folder: Path, plugins: Iterable[str | Path | type] = ()) -> FinishedRun:
    """Run `recipe(tables)` in `folder`, with the plugin files or classes given besides the installed ones."""
    return run(recipe(tables), folder=folder, plugins=[TinyData, TinyModel, *plugins])


@contextmanager
def tiny_run(
    tables: dict[str, Any] | None = None, plugins: Iterable[type] = (), folder: Path | None = None
) -> Generator[Run]:
    """A built `Run` of `recipe(tables)` in a folder, a temporary one if None, before its first step."""
    with tempfile.TemporaryDirectory() as temporary, draws_undone():
        catalogue = Catalogue([TinyData, TinyModel, *plugins])
        built = Run(load_recipe(recipe(tables), catalogue=catalogue), folder or Path(temporary, "run"))
        built.folder.prepare(built.recipe)
        built.build()
        yield built


@dataclass
class Found:
    """A network as it was: weights, buffers, gradients, modes, flags and hooks."""

    tensors: list[Tensor]
    gradients: list[Tensor | None]
    modes: list[bool]
    flags: list[bool]
    hooks: int

    @classmethod
    def of(cls, model: nn.Module, *, buffers: bool = True, gradients: bool = False) -> Found:
        """Take it down, with those of its buffers and gradients that must not move."""
        tensors = [*model.parameters(), *(model.buffers() if buffers else ())]
        return cls(
            [t.detach().clone() for t in tensors],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()] if gradients else [],
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()),
        )

    def assert_unchanged(self, model: nn.Module, *, buffers: bool = True) -> None:
        """Bit for bit."""
        now = Found.of(model, buffers=buffers, gradients=bool(self.gradients))
        assert all(torch.equal(a, b) for a, b in zip(self.tensors, now.tensors, strict=True)), (
            "weights or buffers moved"
        )
        for gradient, left in zip(self.gradients, now.gradients, strict=True):
            same = left is gradient if left is None or gradient is None else torch.equal(left, gradient)
            assert same, "gradients are left at the weights: take them by torch.autograd.grad"
        assert self.modes == now.modes, "training or evaluation mode changed"
        assert self.flags == now.flags, "requires_grad flags changed"
        assert self.hooks == now.hooks, "hooks of the network's modules were added or removed"


Table = dict[str, Any] | None


class _Interruption(Exception):  # noqa: N818
    """Raised inside a network's forward pass."""


@contextmanager
def interrupted_after(passes: int) -> Generator[list[nn.Module]]:
    """Inside, any network with a linear layer raises in the forward pass after the first `passes`; which layers did."""
    left = passes
    raised: list[nn.Module] = []

    def count(module: nn.Module, args: Any) -> None:
        nonlocal left
        left -= isinstance(module, nn.Linear)
        if left < 0:
            raised.append(module)
            raise _Interruption

    handle = register_module_forward_pre_hook(count)
    try:
        yield raised
    except _Interruption:
        pass
    finally:
        handle.remove()


def _in_place(plugin: str | type, options: Table) -> tuple[dict[str, Any], list[type], str]:
    """The recipe tables that put a plugin where it belongs, the classes to register, and its kind."""
    extra = [plugin] if isinstance(plugin, type) else []
    catalogue = Catalogue(extra)
    name = plugin if isinstance(plugin, str) else next(s.name for s in catalogue if s.target is plugin)
    kind = kind_of(catalogue.find(name).load())
    table = dict(options or {})
    if kind in ("data", "model", "optimizer", "schedule", "attack", "loss"):
        return {kind: {"name": name} | table}, extra, kind
    if kind == "measure":
        return {"eval": {"final": {name: table}}}, extra, kind
    return {"plugins": {name: table}}, extra, kind


def _class_of(plugin: str | type) -> type:
    return plugin if isinstance(plugin, type) else Catalogue().find(plugin).load()


def builds_from_an_empty_table(plugin: str | type, options: Table = None) -> None:
    """Every option has a default."""
    build(_class_of(plugin), {})


def refuses_a_wrong_key(plugin: str | type, options: Table = None) -> None:
    """An option that does not exist is an error that names it."""
    try:
        build(_class_of(plugin), {"no_such_option": 1})
    except InvalidOptions as error:
        if "no_such_option" in str(error):
            return
    raise AssertionError("the option 'no_such_option' is not refused by its name")


def leaves_the_network_as_found(plugin: str | type, options: Table = None) -> None:
    """Weights, modes and flags are as before, also when a forward raises.

    Of attacks and measures buffers and gradients too; and nothing is drawn from torch's global generator.
    """
    tables, extra, kind = _in_place(plugin, options)
    if kind in ("data", "model", "optimizer", "schedule"):
        return
    buffers = kind in ("attack", "measure")
    for passes in (*range(8), 10_000):
        with tiny_run(tables, extra) as run:
            batch = next(run.batches())
            before, drawn = Found.of(run.network, buffers=buffers, gradients=buffers), torch.get_rng_state()
            with interrupted_after(passes) as raised:
                _use(run, kind, batch)
            before.assert_unchanged(run.network, buffers=buffers)
            assert torch.equal(drawn, torch.get_rng_state()), "draws from torch's global generator: take run.rng(...)"
        if not raised:
            break


def _use(run: Run, kind: str, batch: Any) -> None:
    """Let a plugin do its part of a step, all but the optimizer's."""
    if kind == "measure":
        examples = Examples(run.data.test, batch_size=5)
        subject = Subject(run.network, "test", examples, run.data.num_classes, Threat(0.1), 0.05, seed=0)
        for hooks in run.measures.values():
            hooks.call.measure(subject=subject)
        return
    run.hook.transform_batch(run=run, batch=batch)
    objective = run.hook.attack_objective(run=run, batch=batch)
    x_adv = run.hook.craft(run=run, batch=batch, objective=objective)
    assert x_adv.shape == batch.x.shape, "x_adv has another shape than x"
    assert not x_adv.requires_grad, "x_adv is not detached"
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1, "x_adv leaves [0, 1]"
    if kind != "attack":
        run.hook.gradients(run=run, batch=batch, x_adv=x_adv)


def switched_off_equals_no_plugin(plugin: str | type, options: Table = None) -> None:
    """With the options of its class attribute `off` (radius zero, rate zero ...), training is as without it."""
    off = getattr(_class_of(plugin), "off", None)
    if off is None:
        return
    tables, extra, _ = _in_place(plugin, (options or {}) | off)
    _assert_same(_trained(tables, extra).weights, _without_plugin().weights)


def gives_the_same_numbers_twice(plugin: str | type, options: Table = None) -> None:
    """One seed, one result: weights and measures; of data images and labels, of a model the weights it begins with."""
    tables, extra, kind = _in_place(plugin, options)
    if kind in ("data", "model"):
        _assert_same(_built(tables, extra, kind), _built(tables, extra, kind))
    else:
        _trained(tables, extra).assert_same(_trained_once(plugin, options))


def _built(tables: Table, plugins: list[type], kind: str) -> dict[str, Tensor]:
    """What a data plugin makes, or a model plugin for the tiny images."""
    with tempfile.TemporaryDirectory() as folder, draws_undone():
        built = Run(load_recipe(recipe(tables), catalogue=Catalogue([TinyData, TinyModel, *plugins])), Path(folder))
        if kind == "model":
            built.build_network()
            return {name: value.clone() for name, value in built.network.state_dict().items()}
        built.build_data()
        parts = {"train": built.data.train, "test": built.data.test}
        return {f"{name} {of}": getattr(images, of).clone() for name, images in parts.items() for of in ("x", "y")}


def resumes_as_if_never_stopped(plugin: str | type, options: Table = None) -> None:
    """Stopped after the first step and after the fourth, a run ends with the same weights and measures."""
    tables, extra, kind = _in_place(plugin, options)
    if kind in ("data", "model"):
        return
    tables = recipe(tables | {"run": {"checkpoint_steps": 1}})
    with tempfile.TemporaryDirectory() as folder:
        for stop in (1, 4):
            with tiny_run(tables, extra, Path(folder, "stopped")) as stopped:
                checkpoints.resume(stopped)
                stopped.console.stepped = _stop_at(stop)  # ty: ignore[invalid-assignment]
                with suppress(_Stopped):
                    loop.train(stopped)
                assert stopped.step == min(stop + 1, stopped.total_steps), f"it began at step {stopped.step}"
        _trained(tables, extra, Path(folder, "stopped")).assert_same(_trained_once(plugin, options))


def _stop_at(step: int) -> Callable[[int], None]:
    def stepped(done: int) -> None:
        if done > step:
            raise _Stopped("stopped by the contract")

    return stepped


class _Stopped(TrainingFailed):
    pass


@dataclass(frozen=True)
class _Trained:
    """What a training ended with, and measured on its way."""

    weights: dict[str, Tensor]
    metrics: str

    def assert_same(self, other: _Trained) -> None:
        _assert_same(self.weights, other.weights)
        assert self.metrics == other.metrics, "different lines in metrics.jsonl"


def _trained(tables: Table, plugins: Iterable[type] = (), folder: Path | None = None) -> _Trained:
    """After `run_recipe` in a folder, a temporary one if None."""
    with tempfile.TemporaryDirectory() as temporary:
        done = run_recipe(tables, folder or Path(temporary, "run"), plugins).folder
        return _Trained(load_file(done / "model.safetensors"), (done / "metrics.jsonl").read_text())


@cache
def _without_plugin() -> _Trained:
    """The same for all that are switched off."""
    return _trained({})


_ONCE: dict[tuple[str | type, str], _Trained] = {}


def _trained_once(plugin: str | type, options: Table) -> _Trained:
    """A training without interruption: what several checks compare with, made by the first of them."""
    key = plugin, repr(options)
    if key not in _ONCE:
        tables, extra, _ = _in_place(plugin, options)
        _ONCE[key] = _trained(tables, extra)
    return _ONCE[key]


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"different weights: {', '.join(different)}"


CHECKS: tuple[Callable[..., None], ...] = (
    builds_from_an_empty_table,
    refuses_a_wrong_key,
    leaves_the_network_as_found,
    switched_off_equals_no_plugin,
    gives_the_same_numbers_twice,
    resumes_as_if_never_stopped,
)
"""The contract: each takes a plugin's name or class, and options where the defaults do not fit."""
