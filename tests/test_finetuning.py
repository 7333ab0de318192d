"""Fine-tuning: training from given weights; and what the scale of ImageNet adds to it."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as transforms

from hookflat import UserError, distance_from_initialization, evaluate
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import find_recipe, needs, recipes_folder
from hookflat.testing import TinyData, TinyModel, run_recipe, tiny_run
from hookflat_plugins.random_resized_crop import RandomResizedCrop, resized_crops

SELF_SUPERVISED = {"activation": {"act": "silu"}, "self_supervision": {"hidden": 4}}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    return run_recipe({"plugins": {"snapshots": {}}}, tmp_path_factory.mktemp("before") / "run").folder


@pytest.mark.parametrize(
    ("which", "file"), [("last", "model.safetensors"), ("1", "checkpoints/epoch-000001.safetensors")]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_training_starts_from_the_weights_of_another(which, file, first, before):
    """Before what other plugins add to the network, which is as without."""
    given, start = load_file(before / file), {"start_from": {"weights": str(before), "which": which}}
    plugins = start | SELF_SUPERVISED if first else SELF_SUPERVISED | start
    with tiny_run({"plugins": plugins}) as run, tiny_run({"plugins": SELF_SUPERVISED}) as without:
        weights = {name.replace(".classifier.", "."): value for name, value in run.network.state_dict().items()}
        heads = {name: value for name, value in without.network.state_dict().items() if ".head." in name}
        assert heads
        assert weights.keys() == given.keys() | heads.keys()
        for name, value in (given | heads).items():
            assert torch.equal(weights[name], value), name
        assert distance_from_initialization(run.network, run.measurements.start) == 0


def test_a_run_that_started_from_another_is_measured_from_there(before, tmp_path):
    tables = {"plugins": {"start_from": {"weights": str(before)}}, "optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    folder = run_recipe(tables, tmp_path / "after").folder
    options = {"measures": ["weight_norm"], "plugins": [TinyData, TinyModel]}
    measured = evaluate(folder, folder=tmp_path / "a", **options).results.models["last"]
    assert measured.test["distance_from_start"] == 0
    shutil.move(before, tmp_path / "moved")
    with pytest.raises(UserError, match=r"neither a run's folder nor a file.*start_from.enabled=false"):
        evaluate(folder, folder=tmp_path / "b", **options)
    options["overrides"] = ["plugins.start_from.enabled=false"]
    measured = evaluate(folder, folder=tmp_path / "c", **options).results.models["last"]
    assert measured.test["distance_from_start"] > 0
    shutil.move(tmp_path / "moved", before)


@pytest.mark.parametrize("normalize", ["none", "data", "0.2/0.5"])
def test_a_training_starts_from_a_file_with_the_normalisation_that_is_asked_for(normalize, tmp_path):
    with tiny_run() as other:
        net = other.network.net
        torch.save({"model": {f"module.{k}": v for k, v in net.state_dict().items()}, "best": {}}, tmp_path / "net.pt")
        start = {"weights": str(tmp_path / "net.pt"), "key": "model", "normalize": normalize}
        with tiny_run({"plugins": {"start_from": start}, "run": {"seed": 1}}) as run:
            mean, std = {"none": (0, 1), "data": run.data.train.statistics(), "0.2/0.5": (0.2, 0.5)}[normalize]
            x = torch.rand(4, 1, 6, 6)
            assert torch.allclose(run.network.eval()(x), net.eval()((x - mean) / std), atol=1e-6)


@pytest.mark.parametrize(
    ("normalize", "told"),
    [(wrong, "should be none") for wrong in ("0.2", "nan/1", "0.2/nan", "1,2/1,2")]
    + [("0.2/0", "a deviation is above 0"), ("125/63", "divide both by 255")],
)
def test_no_normalisation_is_told(normalize, told, tmp_path):
    with tiny_run() as run:
        torch.save(run.network.net.state_dict(), tmp_path / "net.pt")
    start = {"weights": str(tmp_path / "net.pt"), "normalize": normalize}
    with (
        pytest.raises(UserError, match=f"start_from.normalize = {normalize}: .*{told}"),
        tiny_run({"plugins": {"start_from": start}}),
    ):
        pass


def test_adamw_decays_matrices_alone_and_not_through_the_gradient():
    """The first step of Adam moves every weight by lr sign(g); decay multiplies by 1 - lr lambda before it."""
    options = {"name": "adamw", "lr": 0.01, "weight_decay": 0.5}
    with tiny_run({"optimizer": options, "model": {"norm": "group"}}) as run:
        before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
        for p in run.network.parameters():
            p.grad = torch.where(torch.rand_like(p) < 0.5, -0.3, 0.7)
        signs = {n: p.grad.sign() for n, p in run.network.named_parameters()}
        run.optimizer.step()
        for name, p in run.network.named_parameters():
            kept = before[name] * (1 - 0.01 * 0.5 * (p.dim() > 1))
            assert torch.allclose(p, kept - 0.01 * signs[name], atol=1e-6), name
        assert {p.dim() > 1 for p in run.network.parameters()} == {True, False}


@pytest.mark.parametrize(("warmup", "rise"), [(2, 6), (0.25, 3), (0, 0)])
def test_the_cosine_rises_in_a_line_and_falls_along_half_a_period(warmup, rise):
    schedule = {"name": "cosine", "warmup": warmup, "floor": 0.1}
    with tiny_run({"schedule": schedule, "run": {"epochs": 4}}) as run:
        assert run.total_steps == 12
        rates = []
        for _ in range(12):
            rates.append(run.optimizer.param_groups[0]["lr"] / 0.1)
            run.optimizer.step()
            run.schedule.step()
    falling = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / (12 - rise))) for t in range(12 - rise)]
    assert rates == pytest.approx([(t + 1) / rise for t in range(rise)] + falling)
    assert max(rates) == pytest.approx(1)


def test_resized_crops_are_torchvisions():
    """Inside: at the rim of a box ours reads on, where torchvision repeats the last row."""
    x = torch.rand(3, 3, 16, 24)
    boxes = torch.tensor([[0, 0, 24, 16], [4, 2, 12, 8], [6, 8, 18, 4]])
    shares = boxes / torch.tensor([24, 16, 24, 16])
    ours = resized_crops(x, shares)
    for image, own, (left, top, width, height) in zip(x, ours, boxes.tolist(), strict=True):
        theirs = transforms.resized_crop(image, top, left, height, width, [16, 24], antialias=False)
        assert torch.allclose(own[:, 2:-2, 2:-2], theirs[:, 2:-2, 2:-2], atol=1e-5)


def test_boxes_lie_inside_and_have_the_areas_and_shapes_asked_for():
    draws = torch.rand(4000, 4)
    left, top, wide, high = RandomResizedCrop(area=0.2, ratio=1.5).boxes(draws, 20, 20).T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + wide <= 1 + 1e-6).all()
    assert (top + high <= 1 + 1e-6).all()
    whole = (wide < 1) & (high < 1)
    assert torch.allclose((wide * high)[whole], 0.2 + 0.8 * draws[whole, 0], atol=1e-5)
    ratio = (wide / high)[whole]
    assert 1 / 1.5 - 1e-5 <= ratio.min() < 0.7
    assert 1.4 < ratio.max() <= 1.5 + 1e-5


@pytest.mark.parametrize("name", ["svhn", "tiny-imagenet", "imagenet", "cifar100", "extra-data"])
def test_scales_load_over_methods_and_say_what_they_need(name):
    scale = recipes_folder() / "scales" / f"{name}.toml"
    for recipe in ("trades_awp", "entropy_sgd", "cyclic", "rst", "self_supervision", "standard"):
        load_recipe(recipe, overlays=[scale])
    for recipe, steps in (("standard", 0), ("fast_at", 1), ("at", 7), ("pgd14", 14)):
        assert load_recipe(recipe, overlays=[scale]).slots["attack"].steps == steps  # the method's, not the scale's
    assert "download" in needs(scale) or name == "extra-data"
    assert needs(find_recipe("trades")) == ""


def test_the_scale_of_imagenet_is_the_setting_of_singh_et_al():
    loaded = load_recipe("trades", overlays=["scales/imagenet"])
    tables = loaded.tables
    assert tables["loss"]["name"] == "trades"
    assert (tables["optimizer"]["name"], tables["schedule"]["name"]) == ("adamw", "cosine")
    assert tables["attack"]["eps"] == pytest.approx(4 / 255)
    assert loaded.plugins["averaging"].decay == 0.9999
    assert (tables["data"]["size"], tables["data"]["stream"], tables["run"]["precision"]) == (224, True, "bf16")


@pytest.mark.parametrize("network", ["convnext_tiny", "vit_small_patch16_224"])
def test_the_recipe_of_transformers_at_the_scale_of_imagenet_is_theirs_too(network):
    overrides = {"model.checkpointing": True} | ({"model.network": network} if "vit" in network else {})
    tables = load_recipe("vit", overlays=["scales/imagenet"], overrides=overrides).tables
    model, attack, optimizer, plugins = (tables[name] for name in ("model", "attack", "optimizer", "plugins"))
    assert (model["name"], model["network"], model["stem"]) == ("timm", network, "convolutional")
    assert (model["pretrained"], model["patch_size"], model["checkpointing"]) == (True, 0, True)
    assert (attack["name"], attack["steps"]) == ("pgd", 2)
    assert (attack["eps"], attack["step_size"]) == (pytest.approx(4 / 255), pytest.approx(3 / 255))
    assert (optimizer["name"], optimizer["lr"], optimizer["layer_decay"]) == ("adamw", 1e-3, 1.0)
    assert tables["schedule"] == {"name": "cosine", "warmup": 10, "floor": 0.005}
    assert plugins["randaugment"] == {"operations": 2, "magnitude": 0.9}
    assert plugins["mixup"] == {"mixup": 0.8, "cutmix": 1.0, "switch": 0.5}
    assert (plugins["averaging"]["decay"], plugins["label_smoothing"]["tau"]) == (0.9999, 0.1)
    assert (tables["run"]["precision"], tables["run"]["epochs"]) == ("bf16", 50)
