"""No step waits for its device or copies to it: torch's `meta` device, which has no numbers, stands in for a GPU."""

import traceback
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hookflat.functional.attacks import prepared
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples, set_of
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.testing import TinyData, TinyModel
from hookflat.training import loop
from hookflat.training import run as training

META = torch.device("meta")
RECIPES = (
    *("amp", "apgd", "asam", "at", "at_awp", "dom", "entropy_sgd", "free_at", "friendly", "friendly_sam", "grad_align"),
    *("hat", "ignore_incorrect", "ikl", "kd_swa", "label_noise", "lbgat", "mail", "mart", "mi_fgsm", "n_fgsm"),
    *("prevent_label_leaking", "random_weights", "rst", "rwp", "sam", "self_supervision", "trades", "uat"),
    *("unlabeled", "weight_clipping"),
)
"""Those whose step has something of its own. What draws its images by torchvision and the averages of timm need a
true device (tests/test_gpu.py)."""

SMALL = ["model.name=tiny_model", "data.train=64", "data.test=400", "run.batch_size=16", "attack.steps=2"]
NUMBERS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal")
SHAPES = ("aten.nonzero", "aten.masked_select", "aten._unique2", "aten.unique_dim", "aten.bincount")
INDEXED = ("aten.index.Tensor", "aten.index_put", "aten._unsafe_index")


class Watched(TorchDispatchMode):
    """Counts what would wait for the device, or move tensors to it and from it, by the line that asked."""

    def __init__(self):
        super().__init__()
        self.found, self.looking = Counter(), False

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = str(function)
        if not self.looking and not name.startswith(NUMBERS):
            return function(*arguments, **(named or {}))
        tensors = [t for t in tree_leaves((arguments, named)) if isinstance(t, torch.Tensor)]
        on_device = any(t.device == META for t in tensors)
        if self.looking and (why := self._why(name, arguments, named or {}, tensors, on_device)):
            lines = [f for f in traceback.extract_stack() if "/hookflat" in f.filename]
            self.found[f"{why}: {name} in {lines[-1].filename}:{lines[-1].lineno}"] += 1
        if on_device and name.startswith(NUMBERS):
            return 0.5 if tensors[0].is_floating_point() else 1
        return function(*arguments, **(named or {}))

    def _why(self, name, arguments, named, tensors, on_device):
        if name.startswith(("aten._to_copy", "aten.copy_")):
            target = torch.device(named.get("device") or tensors[0].device)
            return "a copy" if any(t.device.type != target.type for t in tensors) else ""
        if not on_device:
            return ""
        masks = arguments[1] if name.startswith(INDEXED) else ()
        if name.startswith(NUMBERS + SHAPES) or any(i is not None and i.dtype == torch.bool for i in masks):
            return "a wait"
        return "a tensor elsewhere" if any(t.device != META and t.dim() for t in tensors) else ""


class Elsewhere:
    """An accelerator of one process whose device is another."""

    def __init__(self, accelerator):
        self._accelerator, self.device = accelerator, META

    def __getattr__(self, name):
        return getattr(self._accelerator, name)

    def prepare(self, *parts):
        return self._accelerator.prepare(*parts, device_placement=[False] * len(parts))

    def gather(self, tensor):
        return tensor

    def reduce(self, tensor, reduction):
        return tensor


@pytest.fixture
def elsewhere(monkeypatch):
    accelerator = training.accelerator
    monkeypatch.setenv("HOOKFLAT_CUDA_GRAPHS", "0")
    monkeypatch.setattr(training, "accelerator", lambda: Elsewhere(accelerator()))
    monkeypatch.setattr(training, "check_fit", lambda *arguments: None)
    monkeypatch.setattr(Images, "on", lambda self, device: Images(self.x.to(device), self.y.to(device)))
    for plugin in ("hat", "distillation"):
        teacher = lambda run, folder, option, *which: deepcopy(run.network).eval().requires_grad_(False)
        monkeypatch.setattr(import_module(f"hookflat_plugins.{plugin}"), "teacher_of", teacher)


def waits(recipe, folder, *sets):
    """What a step in the middle of the training asks of the device, after one that makes what is made once."""
    with Watched() as watched:
        run = training.Run(
            load_recipe(recipe, overrides=[*SMALL, *sets], catalogue=Catalogue([TinyModel])), Path(folder), trial=True
        )
        run.folder.prepare(run.recipe)
        run.build()
        run.epoch, run.step = run.epochs // 2, run.total_steps // 2
        batches = list(run.batches())
        for batch in batches[:2]:
            loop.step(run, batch)
            watched.looking = True
        watched.looking = False
    return watched.found


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_waits_for_its_device(recipe, elsewhere, tmp_path):
    assert not waits(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    "sets",
    [
        ["attack.norm=L2", "attack.eps=0.5", "attack.step_size=0.1", "eval.norm=L2", "eval.eps=0.5"],
        ["attack.norm=L1", "attack.eps=3", "attack.step_size=0.5", "eval.norm=L1", "eval.eps=3"],
        ["run.accumulation=2", "plugins.mixup={}"],
    ],
    ids=["L2", "L1", "parts"],
)
def test_no_step_of_at_waits_with(sets, elsewhere, tmp_path):
    assert not waits("at", tmp_path / "run", *sets)


def test_images_go_where_the_network_is():
    net, images = (
        TinyModel().build_model(run=SimpleNamespace(data=TinyData().build_data())),
        TinyData().build_data().test,
    )
    x, y = images[:4]
    for device in (META, torch.device("cpu")):
        net = net.to_empty(device=device)
        assert {t.device for t in prepared(net, x, y, None)} == {device}
        assert {t.device for t in prepared(nn.Flatten(), x, y, None)} == {x.device}  # it has none
        assert prepared(net, x, y, keys := torch.arange(4))[2] is keys  # of a training, where all is
        for examples in (
            images,
            Examples(images),
            Examples(images, accelerator=SimpleNamespace(device=device, process_index=0, num_processes=1)),
        ):
            assert {t.device for batch in set_of(examples, net) for t in batch} == {device}
    assert {t.device for batch in Examples(images) for t in batch} == {images.x.device}
    place = SimpleNamespace(device=META, process_index=0, num_processes=1)
    assert {t.device for batch in Examples(images, accelerator=place) for t in batch} == {META}


@pytest.mark.parametrize("wait", ["x.sum().item()", "x[x > 0]", "x.cpu()", "x + torch.zeros(x.shape)", "x.nonzero()"])
def test_what_waits_is_found(wait, elsewhere):
    with Watched() as watched:
        x = torch.zeros(3, 2, device=META)
        watched.looking = True
        with suppress(RuntimeError, NotImplementedError):
            eval(compile(wait, "/hookflat/somewhere.py", "eval"), {"x": x, "torch": torch})
        watched.looking = False
    assert [place.rpartition(" in ")[2] for place in watched.found] == ["/hookflat/somewhere.py:1"]
