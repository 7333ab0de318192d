"""A vision transformer of two blocks: what measures and weight perturbations move of it, and how it is trained."""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, fields

import pytest
import torch
from test_contract import OPTIONS
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import hookflat
from hookflat import hookimpl
from hookflat.functional.examples import Examples
from hookflat.functional.losses import cross_entropy
from hookflat.functional.threats import Threat
from hookflat.recipe.catalogue import Catalogue, kind_of
from hookflat.testing import Found, tiny_run
from hookflat.training import loop
from hookflat.training.subject import Subject

VIT = {
    "data": {"size": 8, "test": 4},
    "model": {
        **{"name": "timm", "network": "test_vit", "patch_size": 2, "stem": "convolutional"},
        **{"arguments": {"depth": 2, "embed_dim": 16, "init_values": 0.1, "reg_tokens": 1}},
    },
}
CATALOGUE = Catalogue()
KINDS = {s.name: kind_of(s.load()) for s in CATALOGUE if s.load().__module__.startswith("hookflat_plugins")}
MEASURES = sorted(name for name, kind in KINDS.items() if kind == "measure")
PERTURBATIONS = sorted(name for name, kind in KINDS.items() if kind == "weight perturbation")
CHEAP = {
    **{"samples": 1, "attempts": 1, "sweeps": 1, "steps": 1, "restarts": 1, "reference_restarts": 1, "probes": 1},
    **{"remaximise": False, "tolerance": 0.5},
}
MOVES_LAYERS = {
    *("average_flatness", "clean_average_flatness", "filter_flatness", "worst_flatness", "clean_worst_flatness"),
    *("landscape", "sharpness"),
}
MOVES_FILTERS = {"landscape_2d"}
STRETCHES_EVERYTHING = {"adaptive_sharpness"}
PERTURBS_MATRICES = {"awp", "rwp", "random_weights", "weight_attack"}


@contextmanager
def trained(tables=None, plugins=()):
    """As if after some training: biases begin at zero, and relative radii of zero move nothing."""
    with tiny_run(VIT | (tables or {}), plugins) as run:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in run.network.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        yield run


@pytest.fixture(scope="module")
def vit():
    with trained() as run:
        yield run


def of_layers(network, *, biases=True):
    """By hand: the stem's and MLPs' weights, the projections of attention, the classifier; with their biases."""
    kinds = (nn.Conv2d, nn.Linear)
    modules = {name: m for name, m in network.named_modules() if isinstance(m, kinds)}
    return {f"{name}.{p}" for name in modules for p in (("weight", "bias") if biases else ("weight",))}


def everything(network):
    return {name for name, _ in network.named_parameters()}


class Moved:
    """Names of the parameters that differ from what they were, seen in every pass through a network like it."""

    def __init__(self, network):
        self.before = {name: p.detach().clone() for name, p in network.net.named_parameters()}
        self.names, self.passes = set(), 0

    def __enter__(self):
        self.handle = register_module_forward_pre_hook(self.look)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def look(self, module, _):
        if type(module).__name__ == "VisionTransformer":
            self.passes += 1
            now = dict(module.named_parameters())
            self.names |= {f"net.{n}" for n, b in self.before.items() if not torch.equal(now[n], b)}


def test_layers_are_projections_and_convolutions_not_norms_tokens_positions_or_layer_scales(vit):
    weights = hookflat.layers(vit.network)
    assert weights.keys() == of_layers(vit.network)
    assert {n for n in weights if "attn" in n} == {
        f"net.blocks.{block}.attn.{layer}.{p}"
        for block in "01"
        for layer in ("qkv", "proj")
        for p in ("weight", "bias")
    }
    assert weights["net.blocks.0.attn.qkv.weight"].shape == (48, 16)
    still = everything(vit.network) - weights.keys()
    kinds = {name.split(".")[-1] if "norm" not in name else "norm" for name in still}
    assert {"net.cls_token", "net.pos_embed", "net.reg_token"} <= still
    assert kinds == {"cls_token", "pos_embed", "reg_token", "gamma", "norm", "weight", "bias"}
    assert {n for n in still if n.endswith(("weight", "bias")) and "norm" not in n} == {  # layer norms of the stem
        f"net.patch_embed.proj.1.{p}" for p in ("weight", "bias")
    }


def test_torch_s_fused_attention_is_a_layer_too():
    weights = hookflat.layers(nn.TransformerEncoderLayer(8, 2, 16))
    assert {"self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight"} <= weights.keys()
    assert not any("norm" in name for name in weights)


def test_a_table_of_positions_is_none_whether_a_parameter_or_looked_up():
    net = nn.ModuleDict({"patches": nn.Conv2d(1, 4, 2, 2), "positions": nn.Embedding(9, 4), "head": nn.Linear(4, 3)})
    assert {name.split(".")[0] for name in hookflat.layers(net)} == {"patches", "head"}


@pytest.mark.usefixtures("short_autoattack")
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_takes_a_transformer_moves_what_it_should_and_puts_it_back(measure):
    taken = {option.name for option in fields(CATALOGUE.find(measure).load())}
    options = OPTIONS.get(measure, {}) | {name: value for name, value in CHEAP.items() if name in taken}
    with trained({"eval": {"final": {measure: options}}}) as run:
        before = Found.of(run.network)
        examples = Examples(run.data.test, batch_size=2)
        with Moved(run.network) as moved:
            numbers = {}
            for hooks in run.measures.values():
                subject = Subject(run.network, "test", examples, 3, Threat(0.1), 0.05, seed=0)
                for answer in hooks.call.measure(subject=subject):
                    numbers |= answer or {}
        before.assert_unchanged(run.network)
        if measure in STRETCHES_EVERYTHING:
            assert moved.names == everything(run.network)
        elif measure in MOVES_FILTERS:
            assert moved.names == of_layers(run.network, biases=False)
        elif measure in MOVES_LAYERS:
            assert moved.names == of_layers(run.network)
        else:
            assert moved.names <= of_layers(run.network)
    assert not any(math.isnan(value) for value in numbers.values()), numbers


@dataclass(eq=False)
class Watching:
    """Sees the weights whenever the loss is computed."""

    kind = "test"

    def __post_init__(self):
        self.before, self.seen = {}, set()

    @hookimpl(wrapper=True)
    def criterion(self, run):
        losses = yield
        self.seen |= {n for n, p in run.network.named_parameters() if not torch.equal(p, self.before[n])}
        return losses


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_weight_perturbation_moves_a_transformer_s_tensors_and_puts_them_back(name):
    with trained({"plugins": {name: {}, "watching": {}}}, [Watching]) as run:
        run.step = 1  # curricula begin with the second
        batch = next(run.batches())
        before = Found.of(run.network)
        watching = run.plugins["watching"]
        watching.before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
        x_adv = (batch.x + 0.05).clamp(0, 1)
        for _ in range(2):  # F-SAM remembers a step
            value = run.hook.gradients(run=run, batch=batch, x_adv=x_adv)
            before.assert_unchanged(run.network)
        assert value.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in run.network.parameters())
        expected = of_layers(run.network, biases=False) if name in PERTURBS_MATRICES else everything(run.network)
        assert watching.seen == expected


def test_layer_wise_rates_fall_from_the_classifier_to_the_stem_and_follow_the_schedule():
    optimizer = {"name": "adamw", "lr": 0.01, "weight_decay": 0.3, "layer_decay": 0.5}
    with tiny_run(VIT | {"optimizer": optimizer, "schedule": {"name": "cyclic", "peak": 0.2}}) as run:
        named = {id(p): name for name, p in run.network.named_parameters()}
        run.optimizer.step()
        run.schedule.step()
        for group in run.optimizer.param_groups:
            for p in group["params"]:
                name = named[id(p)]
                depth = 0 if "head" in name else 1 if "blocks.1" in name or ".norm." in name[:9] else 2
                depth = depth if "blocks.0" in name or depth < 2 else 3
                assert group["initial_lr"] == pytest.approx(0.2 * 0.5**depth), name
                assert group["lr"] == pytest.approx(0.2 / 3 * 0.5**depth), name
                assert group["weight_decay"] == (0.3 if p.dim() > 1 else 0)
        assert run.optimizer.param_groups[0]["initial_lr"] == 0.2


@pytest.mark.parametrize("with_stem", [True, False])
def test_a_stem_is_loaded_where_the_weights_have_it_and_learns_at_the_full_rate_where_not(with_stem, tmp_path):
    with tiny_run(VIT) as run:
        given = run.network.net.state_dict()
    stem = {name for name in given if name.startswith("patch_embed.proj.")}
    torch.save({k: v + 1 for k, v in given.items() if with_stem or k not in stem}, tmp_path / "weights.pth")
    model = VIT["model"] | {"pretrained": True, "weights": str(tmp_path / "weights.pth")}
    optimizer = {"name": "adamw", "lr": 0.01, "layer_decay": 0.5}
    with tiny_run(VIT | {"model": model, "optimizer": optimizer, "schedule": {"name": "constant"}}) as run:
        named = dict(run.network.net.named_parameters())
        rates = {id(p): group["lr"] for group in run.optimizer.param_groups for p in group["params"]}
        for name, p in named.items():
            loaded = torch.equal(p, given[name] + 1)
            assert loaded == (not name.startswith("head.") and (with_stem or name not in stem)), name
        full = {name for name, p in named.items() if rates[id(p)] == 0.01}
        assert (stem <= full) != with_stem
        assert {"head.weight", "head.bias"} <= full


def test_layer_wise_rates_need_a_network_that_tells_its_layers():
    with (
        pytest.raises(hookflat.UserError, match="layer_decay: the network does not say"),
        tiny_run({"optimizer": {"name": "adamw", "layer_decay": 0.5}}),
    ):
        pass


@pytest.mark.parametrize(
    ("network", "image", "stem"),
    [("vit_small_patch16_224", 224, [48, 96, 192, 384]), ("convnext_tiny", 64, [48, 96])],
)
def test_convolutional_stems_are_those_of_singh_et_al(network, image, stem):
    model = {"name": "timm", "network": network, "stem": "convolutional", "arguments": {"depth": 1}}
    model["arguments"] = {"depth": 1} if "vit" in network else {"depths": [1, 1, 1, 1]}
    with tiny_run({"data": {"size": image, "train": 2, "test": 2}, "model": model, "run": {"batch_size": 2}}) as run:
        net = run.network.net
        layers = net.patch_embed.proj if "vit" in network else net.stem
        convolutions = [m for m in layers if isinstance(m, nn.Conv2d)]
        halving = convolutions[: len(stem)]
        assert [m.out_channels for m in halving] == stem
        assert {(m.kernel_size, m.stride, m.padding) for m in halving} == {((3, 3), (2, 2), (1, 1))}
        assert [type(m).__name__ for m in layers][:3] == ["Conv2d", "LayerNorm2d", "GELU"]
        rest = [(m.kernel_size, m.out_channels) for m in convolutions[len(stem) :]]
        assert rest == ([((1, 1), 384)] if "vit" in network else [])
        assert run.network(torch.rand(1, 1, image, image)).shape == (1, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"network": "resnet18", "stem": "convolutional"},
            "fits timm's VisionTransformer and ConvNeXt, not 'resnet18'",
        ),
        ({"network": "test_vit", "patch_size": 4, "stem": "convolutional", "arguments": {"embed_dim": 6}}, "halves"),
        ({"network": "test_vit", "patch_size": 3, "stem": "convolutional"}, "patches of 3 pixels are no power of two"),
        ({"network": "test_resnet", "patch_size": 3}, "timm cannot make 'test_resnet'"),
        ({"network": "test_byobnet", "checkpointing": True}, None),
    ],
)
def test_stems_that_do_not_fit_are_told(model, message):
    table = {"data": {"size": 12}, "model": {"name": "timm"} | model}
    if message is None:
        with tiny_run(table):
            return
    with pytest.raises(hookflat.UserError) as told, tiny_run(table):
        pass
    assert message in str(told.value)


def test_checkpointing_changes_no_gradient_of_weights_or_images():
    gradients = []
    for checkpointing in (False, True):
        model = VIT["model"] | {"checkpointing": checkpointing}
        with tiny_run(VIT | {"model": model}) as run:
            assert run.network.net.grad_checkpointing is checkpointing
            batch = next(run.batches())
            x_adv = hookflat.pgd(run.attack_model, batch.x, batch.y, eps=0.1, step_size=0.05, steps=2)
            run.loss_and_gradients(batch, x_adv)
            gradients.append([x_adv, *(p.grad for p in run.network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_ema_bf16_mixup_and_the_attack_train_a_transformer_together():
    tables = {
        "data": VIT["data"] | {"train": 16},
        "optimizer": {"name": "adamw", "lr": 0.01, "layer_decay": 0.9},
        "plugins": {"mixup": {}, "averaging": {"decay": 0.5}},
        "run": {"epochs": 1, "precision": "bf16"},
    }
    with tiny_run(VIT | tables) as run:
        before = [p.detach().clone() for p in run.network.parameters()]
        computed = set()
        qkv = run.network.net.blocks[1].attn.qkv
        qkv.register_forward_hook(lambda module, x, out: computed.add((module.training, out.dtype)))
        for batch in run.batches():
            assert loop.step(run, batch).isfinite()
            mixed, x_adv = run.last
            assert mixed.target.is_floating_point()
            assert 0 < (x_adv - mixed.x).abs().max() <= 0.1 + 1e-6
        assert computed == {(True, torch.bfloat16), (False, torch.float32)}  # the attack has a precision of its own
        assert run.step == run.total_steps == 2
        trained = [p.detach() for p in run.network.parameters()]
        average = [p.detach() for p in run.eval_model().parameters()]
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in (*trained, *average))
        for start, end, mean in zip(before, trained, average, strict=True):
            assert not torch.equal(start, end)
            assert 0 < (mean - start).norm() < (end - start).norm()


def test_gradalign_differentiates_attention_twice():
    with tiny_run(VIT | {"plugins": {"grad_align": {}}}) as run:
        batch = next(run.batches())
        assert run.loss_and_gradients(batch, batch.x).isfinite()


def test_products_with_the_hessian_of_attention_are_those_of_differences(vit):
    """Reverse over reverse, through attention, against gradients at w + h v and w - h v in float64."""
    network = copy.deepcopy(vit.network).double().eval()
    x, y = vit.data.test.__getitems__(torch.arange(4))
    x, weights = x.double(), list(hookflat.layers(network, biases=False).values())

    def gradient():
        return torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy(network(x), y).mean(), weights)])

    largest = hookflat.hessian_eigenvalues(network, [(x, y)], k=1, robust=False).largest[0]
    v = torch.randn(sum(w.numel() for w in weights), generator=torch.Generator().manual_seed(0)).double()
    for _ in range(60):  # power iteration
        v = v / v.norm()
        parts = [p.view_as(w) for p, w in zip(v.split([w.numel() for w in weights]), weights, strict=True)]
        with hookflat.moved(weights, [1e-4 * p for p in parts]):
            there = gradient()
        with hookflat.moved(weights, [-1e-4 * p for p in parts]):
            back = gradient()
        product = (there - back) / 2e-4
        v, rayleigh = product, (v @ product).item()
    assert rayleigh == pytest.approx(largest, rel=1e-3)


# --- RandAugment, mixup, CutMix


def test_randaugment_is_torchvision_s_with_its_draws_made_by_hand():
    from torchvision.transforms import v2

    from hookflat_plugins.autoaugment import rand_augmented

    x = torch.randint(256, (28, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = v2.RandAugment(num_magnitude_bins=31, fill=[128, 64, 32])
    names = list(theirs._AUGMENTATION_SPACE)
    assert len(names) == 14
    draws = torch.tensor([[[(i + 0.5) / 14, sign]] for sign in (0.9, 0.1) for i in range(14)])
    ours = rand_augmented(x, draws, 0.6, torch.tensor([128, 64, 32]) / 255)
    changed = 0
    for i, (image, got) in enumerate(zip(x, ours, strict=True)):
        sizes, signed = theirs._AUGMENTATION_SPACE[names[i % 14]]
        size = sizes(31, 12, 12)
        size = 0.0 if size is None else float(size[18]) * (-1 if signed and i >= 14 else 1)
        kwargs = {"interpolation": theirs.interpolation, "fill": theirs._fill}
        expected = theirs._apply_image_or_video_transform(image, names[i % 14], size, **kwargs)
        assert torch.equal(got, expected), names[i % 14]
        changed += not torch.equal(got, image)
    assert changed >= 20
    two = rand_augmented(x, draws.repeat(1, 2, 1), 0.6, torch.tensor([128, 64, 32]) / 255)
    again = rand_augmented(ours, draws, 0.6, torch.tensor([128, 64, 32]) / 255)
    assert torch.equal(two, again)


def mixed(run, **options):
    from hookflat_plugins.mixup import Mixup

    run.epoch = run.step // run.steps_per_epoch
    batch = next(run.batches())
    x, y = batch.x.clone(), batch.y.clone()
    Mixup(**options).transform_batch(run=run, batch=batch)
    return batch, x, y


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_mixes_labels_as_it_mixes_images(kind):
    options = {"mixup": 0.8, "cutmix": 0} if kind == "mixup" else {"mixup": 0, "cutmix": 1.0}
    shares = []
    with tiny_run({"data": {"size": 12}}) as run:
        for run.step in range(6):
            batch, x, y = mixed(run, **options)
            other = torch.arange(len(x)).view(-1, 2).flip(1).flatten()
            one_hot = torch.eye(3)[y]
            distinct = y != y[other]
            share = ((batch.target - one_hot[other]) / (one_hot - one_hot[other]))[one_hot != one_hot[other]].mean()
            shares.append(share.item())
            assert torch.allclose(batch.target, share * one_hot + (1 - share) * one_hot[other], atol=1e-5)
            if kind == "mixup":
                assert torch.allclose(batch.x, share * x + (1 - share) * x[other], atol=1e-5)
            else:
                own = (batch.x == x).all(dim=1).float().mean(dim=(1, 2))
                assert ((own > share - 1e-5) & (own < share + 0.05)).all()  # some pixels of the two are equal
                assert ((batch.x == x) | (batch.x == x[other])).all()
            larger = torch.where(share > 0.5 - 1e-5, y, y[other])
            assert torch.equal(batch.y[distinct], larger[distinct])
    assert min(shares) < 0.5 < max(shares)


def test_the_attack_maximises_the_cross_entropy_with_the_mixed_target_but_for_losses_with_their_own():
    for loss in ("at", "trades"):
        with tiny_run({"loss": {"name": loss}, "plugins": {"mixup": {}}}) as run:
            batch = next(run.batches())
            run.hook.transform_batch(run=run, batch=batch)
            objective = run.hook.attack_objective(run=run, batch=batch)
            x = (batch.x + 0.01).clamp(0, 1)
            with torch.no_grad():
                logits, soft = run.attack_model(x), -(batch.target * run.attack_model(x).log_softmax(1)).sum(1)
                assert torch.allclose(objective(run.attack_model, x), soft, atol=1e-6) == (loss == "at")
                assert not torch.allclose(soft, cross_entropy(logits, batch.y))


def test_pairs_of_mixup_do_not_depend_on_the_number_of_processes():
    from hookflat_plugins.mixup import neighbours

    whole = neighbours(torch.arange(8))
    assert whole.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert (neighbours(torch.arange(4, 8)) + 4).tolist() == whole[4:].tolist()
    assert neighbours(torch.arange(3, 6)).tolist() == [0, 2, 1]  # row 3 is alone there, 4 and 5 are not


def test_label_noise_redraws_mixed_labels_too():
    with tiny_run({"plugins": {"mixup": {}, "label_noise": {"rate": 0.5}}}) as run:
        batch = next(run.batches())
        run.hook.transform_batch(run=run, batch=batch)
        certain = batch.target.amax(dim=1) == 1
        assert torch.allclose(batch.target.sum(dim=1), torch.ones(8))
        assert 0 < certain.sum() < 8
