"""What only a GPU can show: `ACCELERATE_USE_CPU=false python -m pytest tests/test_gpu.py`."""

import copy
import os
import warnings
from dataclasses import dataclass

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_device import RECIPES
from torch.utils.data import DataLoader, TensorDataset

import hookflat
from hookflat import Data, Images, hookimpl
from hookflat.functional import cuda_graphs, data, seeds
from hookflat.functional.attack_view import attack_view
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.records.folder import RunFolder
from hookflat.testing import TinyData, TinyModel, recipe, run_recipe, tiny_run
from hookflat.training import entry, loop
from hookflat.training.run import Run

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() != "false",
    reason="needs a GPU, and ACCELERATE_USE_CPU=false",
)

SMALL = {"data": {"name": "digits", "train": 256, "test": 64}, "model": {"name": "resnet_small", "width": 16}}
METHODS = {
    "at": {},
    "trades": {"loss": {"name": "trades"}},
    "mart": {"loss": {"name": "mart"}},
    "awp": {"plugins": {"awp": {"xi": 0.01}}},
    "random weights": {"plugins": {"random_weights": {"xi": 0.5}}},
    "entropy-sgd": {"optimizer": {"name": "entropy_sgd", "langevin_steps": 3}},
    "label noise": {"plugins": {"label_noise": {"rate": 0.4}}},
    "augment": {"plugins": {"augment": {"padding": 1}}},
    "clipping": {"plugins": {"weight_clipping": {"w_max": 0.05}}},
    "averaging": {"plugins": {"averaging": {"decay": 0.9}}},
    "self-supervision": {"plugins": {"self_supervision": {}}},
    "bf16": {"run": {"precision": "bf16"}, "attack": {"precision": "bf16"}},
    "sam": {"plugins": {"sam": {}}},
    "parts": {"run": {"accumulation": 2}},
}


@dataclass(eq=False)
class Coloured:
    """Random colour images."""

    @hookimpl
    def build_data(self):
        x = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = Images(x, torch.arange(256) % 10)
        return Data(images, images, 10)


COLOURED = {"data": {"name": "coloured"}, "plugins": {"augment": {}, "autoaugment": {}}}


def without_waiting(run, batches):
    """A step for each; captures, caches and the optimizer's state are made in the first eight, which may wait."""
    for batch in batches[:8]:
        loop.step(run, batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[8:]:
            loop.step(run, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [*METHODS, "autoaugment"])
def test_no_step_waits_for_the_device(name):
    tables = SMALL | METHODS.get(name, COLOURED)
    with tiny_run(tables, [Coloured]) as run:
        assert run.device.type == "cuda"
        batches = [b for _ in range(3) for b in run.batches()]
        without_waiting(run, batches[:12])
        run.check()


@pytest.mark.parametrize(
    "name", sorted({*RECIPES, "adr", "swa", "timm", "vit", "weight_averaging"} - {"hat", "kd_swa"})
)
def test_no_step_of_a_recipe_waits_for_the_device(name, tmp_path):
    """Two recipes learn from a run that is not here: tests/test_device.py has them, with a stand-in for a device."""
    sets = ["data.train=256", "data.test=400", "run.batch_size=32", "attack.steps=2"]
    run = Run(load_recipe(name, overrides=sets), tmp_path / "run", trial=True)
    run.folder.prepare(run.recipe)
    run.build()
    run.epoch, run.step = run.epochs // 2, run.total_steps // 2
    batches = [b for _ in range(2) for b in run.batches()]
    without_waiting(run, batches[:10])


@pytest.mark.parametrize("name", ["at", "trades", "mart", "awp", "entropy-sgd", "bf16", "sam", "parts"])
def test_training_by_graphs_is_training(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    def trained():
        with tiny_run(SMALL | METHODS[name]) as run:
            batches = [b for _ in range(2) for b in run.batches()]
            losses = [loop.step(run, batch) for batch in batches]
            passes = len(run.model._passes) if isinstance(run.model, cuda_graphs.Replayed) else 0
            return torch.stack(losses), [p.clone() for p in run.network.state_dict().values()], passes

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no CUDA graph")
        losses, weights, passes = trained()
    assert passes
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    plain, other, none = trained()
    assert not none
    assert torch.allclose(losses, plain, rtol=1e-3)
    for a, b in zip(weights, other, strict=True):
        assert torch.allclose(a.float(), b.float(), rtol=1e-2, atol=1e-3)


def test_images_that_live_elsewhere_arrive_without_a_wait_and_are_the_same(monkeypatch):
    with tiny_run(SMALL) as run:
        there = list(run.batches())
    monkeypatch.setattr(data, "_ON_DEVICE", 0)
    with tiny_run(SMALL) as run:
        assert next(run.batches()).x.is_cuda  # memory is pinned, and the caches are made
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            batches = list(run.batches())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for batch, same in zip(batches, there, strict=True):
        for name in ("x", "y", "index", "row"):
            assert torch.equal(getattr(batch, name), getattr(same, name))


@pytest.fixture(scope="module")
def trained():
    with tiny_run(SMALL) as run:
        for _ in range(6):
            for batch in run.batches():
                loop.step(run, batch)
            run.epoch += 1
        x, y = run.data.test.__getitems__(torch.arange(64))
        return run.network.eval(), x.cuda(), y.cuda()


def test_graphs_find_what_passes_find(trained, monkeypatch):
    net, x, y = trained
    attack = hookflat.Attack(hookflat.Threat(0.15), 0.03, 10)
    captured = []
    capture = torch.cuda.make_graphed_callables
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *a, **o: captured.append(a) or capture(*a, **o))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no CUDA graph")
        with_graphs = [hookflat.robust_loss(net, (x, y), attack=attack, restarts=3), *_points(net, x, y, attack)]
        assert captured
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    without = [hookflat.robust_loss(net, (x, y), attack=attack, restarts=3), *_points(net, x, y, attack)]
    assert with_graphs[0].loss == pytest.approx(without[0].loss, rel=1e-4)
    assert with_graphs[0].error == without[0].error
    for a, b in zip(with_graphs[1:], without[1:], strict=True):
        assert (a != b).float().mean() < 0.01  # signs of gradients that round to zero


def test_fab_finds_the_same_with_graphs(trained, monkeypatch):
    net, x, y = trained
    options = {"eps": 0.1, "version": "custom", "attacks": ["fab"]}
    with_graphs = hookflat.autoattack(net, (x, y), **options).error
    monkeypatch.setenv(cuda_graphs.SWITCH, "0")
    assert with_graphs == pytest.approx(hookflat.autoattack(net, (x, y), **options).error, abs=1 / 64 + 1e-9)


def test_views_of_networks_that_are_gone_give_their_memory_back(trained):
    net, x, y = trained
    attack, reserved = hookflat.Attack(hookflat.Threat(0.15), 0.03, 10), []
    for _ in range(6):
        hookflat.pgd(copy.deepcopy(net), x, y, attack=attack)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= 1.1 * reserved[1]


class Asking(torch.nn.Module):
    """A network that waits for its device in every pass."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) * (1.0 if x.mean().item() > -1 else 0.0)


def test_a_network_that_cannot_be_captured_leaves_no_trace(trained):
    net, x, y = trained
    attack, stream = hookflat.Attack(hookflat.Threat(0.15), 0.03, 10), torch.cuda.current_stream()
    expected = hookflat.pgd(net, x, y, attack=attack)
    with pytest.warns(UserWarning, match="no CUDA graph of the attacked network, it runs as it is"):
        measured = hookflat.pgd(Asking(net).eval(), x, y, attack=attack)
    assert (measured != expected).float().mean() < 0.01
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.equal(hookflat.pgd(net, x, y, attack=attack), expected)  # its graph, as before
    torch.rand(3, device="cuda")  # the generator is not left inside a capture


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_network_on_another_gpu_than_the_current_one(trained):
    net, x, y = trained
    attack = hookflat.Attack(hookflat.Threat(0.15), 0.03, 10)
    there = hookflat.pgd(copy.deepcopy(net).to("cuda:1"), x.to("cuda:1"), y.to("cuda:1"), attack=attack)
    assert (there.to("cuda:0") != hookflat.pgd(net, x, y, attack=attack)).float().mean() < 0.01


def test_the_library_takes_images_that_are_on_the_cpu(trained):
    net, x, y = trained
    attack = hookflat.Attack(hookflat.Threat(0.15), 0.03, 5)
    there = x.cpu(), y.cpu()
    for name, options in (("pgd", {}), ("pgd_tau", {"tau": 1}), ("apgd", {})):
        x_adv = getattr(hookflat, name)(net, *there, attack=attack, **options)
        assert torch.equal(x_adv, getattr(hookflat, name)(net, x, y, attack=attack, **options))
    images = Images((there[0] * 255).round().byte(), there[1])
    pinning = DataLoader(TensorDataset(*images[:]), batch_size=16, num_workers=2, pin_memory=True)  # while it captures
    expected = hookflat.robust_loss(net, images[:], attack=attack, restarts=2).per_example.loss
    for given in (images, hookflat.Examples(images, batch_size=16), pinning):
        measured = hookflat.robust_loss(net, given, attack=attack, restarts=2).per_example.loss
        torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_deep_networks_are_folded_in_tf32_too(seed):
    torch.manual_seed(seed)
    net = timm.create_model("resnet152", num_classes=10).cuda()
    for _ in range(3):
        net(torch.rand(32, 3, 64, 64, device="cuda"))
    view = attack_view(net.eval())
    view(torch.rand(8, 3, 64, 64, device="cuda"))
    assert view._folds


def _points(net, x, y, attack):
    return hookflat.pgd(net, x, y, attack=attack, momentum=0.9), hookflat.apgd(net, x, y, eps=0.15)


def test_measures_agree_with_the_cpu(trained):
    net, x, y = trained
    attack = hookflat.Attack(hookflat.Threat(0.15), 0.03, 10, restarts=2)

    def measured(net, x, y):
        robust = hookflat.robust_loss(net, (x, y), attack=attack)
        average = hookflat.average_flatness(net, (x, y), samples=3, xi=0.3, reference=robust.loss, attack=attack)
        worst = hookflat.worst_flatness(
            net, (x, y), attempts=2, sweeps=10, xi=0.003, reference=robust.loss, attack=attack
        )
        result = hookflat.autoattack(net, (x, y), eps=0.1, version="custom", attacks=["apgd-ce", "apgd-t"])
        more = [
            hookflat.robust_error(net, (x, y), attack=attack).error,
            hookflat.margins(net, (x, y), attack=attack).logit.mean().item(),
            hookflat.input_gradients(net, (x, y), attack=attack).l2.mean().item(),
            hookflat.local_lipschitz(net, (x, y), attack=attack).mean().item(),
            hookflat.boundary_thickness(net, (x, y)).mean().item(),
        ]
        return robust.loss, robust.error, average.flatness, worst.flatness, result.error, *more

    on_gpu = measured(net, x, y)
    on_cpu = measured(copy.deepcopy(net).cpu(), x.cpu(), y.cpu())
    assert on_gpu == pytest.approx(on_cpu, rel=5e-3, abs=1 / 64 + 1e-9)


def test_low_precision_reports_no_fewer_errors(trained):
    net, x, y = trained
    attack = hookflat.Attack(hookflat.Threat(0.1), 0.02, 10)
    full = hookflat.robust_loss(net, (x, y), attack=attack)
    low = hookflat.robust_loss(net, (x, y), attack=attack, precision="bf16")
    assert low.error >= full.error
    assert low.loss == pytest.approx(full.loss, rel=0.02)


def test_draws_are_those_of_the_cpu():
    keys = torch.arange(1000)
    assert torch.equal(seeds.uniform(keys, (7,), 3), seeds.uniform(keys.cuda(), (7,), 3).cpu())
    assert torch.allclose(seeds.normal(keys, (7,), 3), seeds.normal(keys.cuda(), (7,), 3).cpu(), atol=1e-5)
    like = torch.zeros(64, 64, 3, 3)
    (here,) = seeds.normals_like([like], torch.Generator().manual_seed(0))
    (there,) = seeds.normals_like([like.cuda()], torch.Generator().manual_seed(0))
    assert torch.allclose(here, there.cpu(), atol=1e-5)


def test_autoaugment_does_to_a_batch_what_the_cpu_does():
    from hookflat_plugins.autoaugment import policy_on

    x = torch.randint(0, 256, (400, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(400, 5, generator=torch.Generator().manual_seed(1))
    mean = torch.full((3,), 0.5)
    here, there = policy_on(x, draws, mean), policy_on(x.cuda(), draws.cuda(), mean.cuda()).cpu()
    off = (here.int() - there.int()).abs()
    assert (off > 1).float().mean() < 1e-3  # a nearest pixel that rounds to its neighbour


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_goes_on_where_it_stopped(precision, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    tables = SMALL | {"run": {"epochs": 2, "precision": precision}}
    run_recipe(tables, tmp_path / "whole")
    stopped = hookflat.load_recipe(recipe(tables), catalogue=Catalogue([TinyData, TinyModel]))
    entry.first_steps(stopped, 17, folder=tmp_path / "stopped")
    run_recipe(tables, tmp_path / "stopped")
    one, other = (load_file(RunFolder(tmp_path / name).network("last")) for name in ("whole", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_compiled_network_trains_and_is_attacked(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile failed")
        run_recipe(SMALL | {"run": {"epochs": 1, "compile": True}, "attack": {"compile": True}}, tmp_path / "run")
    with tiny_run(SMALL | {"run": {"compile": True}}) as run:
        assert run.model._run[0] is not run.model.net  # a failure would be said on the console alone
    assert RunFolder(tmp_path / "run").network("last")
