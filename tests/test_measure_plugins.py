"""Every number of the critics' measures is the library's, with the arguments that the number's name promises."""

import itertools
import tomllib

import pytest

import hookflat
from hookflat.functional import adaptive_sharpness as adaptive_sharpness_of_the_library
from hookflat.functional.examples import Examples
from hookflat.functional.threats import Threat
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.options import build
from hookflat.recipe.shipped import recipes_folder
from hookflat.training.subject import Subject
from hookflat_plugins.digits import Digits

EPS, STEP_SIZE, SEED = 0.08, 0.03, 3
CASES = []
"""(plugin, options, what says from a network and its examples every number by name)."""


def case(plugin, **options):
    def add(expected):
        CASES.append(pytest.param(plugin, options, expected, id=expected.__name__))
        return expected

    return add


def at(loss, steps):
    """The arguments of "clean" and "robust" in a name."""
    robust = {"robust": True, "eps": EPS, "step_size": STEP_SIZE, "steps": steps}
    return {"seed": SEED} | (robust if loss == "robust" else {"robust": False})


def attack(steps):
    return {"seed": SEED, "eps": EPS, "step_size": STEP_SIZE, "steps": steps}


@case("relative_flatness", steps=2)
def relative_flatness(net, data):
    return {
        "relative_flatness_clean": hookflat.relative_flatness(net, data, **at("clean", 2)),
        "relative_flatness_robust": hookflat.relative_flatness(net, data, **at("robust", 2)),
    }


@case("sharpness", rho=0.1, adaptive_rho=0.3, steps=2)
def sam_sharpness(net, data):
    return {
        f"{name}_sharpness_{loss}": hookflat.sharpness(net, data, **more, **at(loss, 2)).sharpness
        for name, more in {"sam": {"rho": 0.1}, "adaptive": {"rho": 0.3, "adaptive": True}}.items()
        for loss in ("clean", "robust")
    }


RADII = {"average_rho_l2": 0.05, "average_rho_linf": 0.3, "worst_rho_l2": 0.4, "worst_rho_linf": 0.003}


@case("adaptive_sharpness", samples=2, iterations=2, batch_size=5, steps=2, **RADII)
def adaptive_sharpness(net, data):
    by_name = {}
    for loss, norm, logits in itertools.product(("clean", "robust"), ("L2", "Linf"), ("", "_normalized")):
        name = f"sharpness_{norm.lower()}_{loss}{logits}"
        options = {"weight_norm": norm, "adaptive": True, "normalize_logits": logits == "_normalized", **at(loss, 2)}
        average = hookflat.average_sharpness(net, data, rho={"L2": 0.05, "Linf": 0.3}[norm], samples=2, **options)
        options |= {"iterations": 2, "batch_size": 5}
        worst = hookflat.worst_sharpness(net, data, rho={"L2": 0.4, "Linf": 0.003}[norm], **options)
        by_name[f"adaptive_average_{name}"] = average.flatness
        by_name[f"adaptive_average_{name}_stderr"] = average.standard_error
        by_name[f"adaptive_worst_{name}"] = worst.sharpness
    return by_name


ONE = {"losses": ["clean"], "norms": ["L2"], "logits": ["plain"]}


@case("adaptive_sharpness", adaptive=False, samples=1, iterations=2, average_rho_l2=0.05, worst_rho_l2=0.4, **ONE)
def sharpness_that_is_not_adaptive(net, data):
    options = {"weight_norm": "L2", "adaptive": False, "robust": False, "seed": SEED}
    return {
        "average_sharpness_l2_clean": hookflat.average_sharpness(net, data, rho=0.05, samples=1, **options).flatness,
        "worst_sharpness_l2_clean": hookflat.worst_sharpness(net, data, rho=0.4, iterations=2, **options).sharpness,
    }


@case("filter_flatness", xi=0.3, samples=2, steps=2, reference_restarts=3)
def filter_flatness(net, data):
    measured = hookflat.average_flatness(net, data, xi=0.3, samples=2, reference_restarts=3, filters=True, **attack(2))
    return {"filter_flatness": measured.flatness, "filter_flatness_stderr": measured.standard_error}


@case("clean_average_flatness", xi=0.3, samples=2)
def clean_flatness(net, data):
    measured = hookflat.average_flatness(net, data, xi=0.3, samples=2, restarts=0, reference_restarts=0, seed=SEED)
    return {"clean_average_flatness": measured.flatness, "clean_average_flatness_stderr": measured.standard_error}


@case("flatness_along_attack", xi=0.3, samples=2, steps=4)
def flatness_along_attack(net, data):
    path = hookflat.flatness_along_attack(net, data, xi=0.3, samples=2, start="zero", **attack(4))
    wrong, values = path.wrong[4], {}
    for name, flatness in (("relative", path.relative), ("rise", path.rise)):
        values[f"along_{name}_start"] = flatness[0].mean()
        values[f"along_{name}_peak"] = max(flatness[step].mean() for step in range(5))
        values[f"along_{name}_end"] = flatness[4].mean()
        values[f"along_{name}_correct"] = (
            sum(f for f, w in zip(flatness[4], wrong, strict=True) if not w) / (~wrong).sum()
        )
        values[f"along_{name}_wrong"] = sum(f for f, w in zip(flatness[4], wrong, strict=True) if w) / wrong.sum()
    return values


@case("hessian", k=2, probes=2, steps=2, tolerance=0.05)
def hessian(net, data):
    by_name = {}
    for loss in ("clean", "robust"):
        values = hookflat.hessian_eigenvalues(net, data, k=2, tolerance=0.05, **at(loss, 2))
        trace = hookflat.hessian_trace(net, data, samples=2, **at(loss, 2))
        by_name[f"hessian_{loss}_max"], by_name[f"hessian_{loss}_2"] = values.largest
        by_name[f"hessian_{loss}_ratio"] = abs(values.smallest) / values.largest[0]
        by_name[f"hessian_{loss}_trace"], by_name[f"hessian_{loss}_trace_stderr"] = trace.trace, trace.standard_error
    return by_name


@case("hessian_density", probes=1, lanczos_steps=3, steps=2)
def hessian_density(net, data):
    return {
        f"hessian_{loss}_frobenius": hookflat.hessian_density(
            net, data, probes=1, lanczos_steps=3, **at(loss, 2)
        ).frobenius
        for loss in ("clean", "robust")
    }


@case("margins", steps=2)
def margins(net, data):
    by_name = {}
    for loss in ("clean", "robust"):
        each = hookflat.margins(net, data, **at(loss, 2))
        wrong = [c for c, w in zip(each.confidence.tolist(), each.wrong.tolist(), strict=True) if w]
        by_name[f"logit_margin_{loss}"] = each.logit.mean()
        by_name[f"logit_margin_quantile_{loss}"] = each.logit.quantile(0.1)
        by_name[f"probability_margin_{loss}"] = each.probability.mean()
        by_name[f"confidence_{loss}"] = each.confidence.mean()
        by_name[f"confidence_wrong_{loss}"] = sum(wrong) / len(wrong)
    return by_name


@case("input_gradients", steps=2)
def input_gradients(net, data):
    each = {loss: hookflat.input_gradients(net, data, **at(loss, 2)) for loss in ("clean", "robust")}
    return {f"input_gradient_l1_{loss}": norms.l1.mean() for loss, norms in each.items()} | {
        f"input_gradient_l2_{loss}": norms.l2.mean() for loss, norms in each.items()
    }


@case("lipschitz", steps=2)
def lipschitz(net, data):
    return {"lipschitz_l1": hookflat.local_lipschitz(net, data, top="L1", start="uniform", **attack(2)).mean()}


@case("lipschitz", top="KL", steps=2)
def lipschitz_of_probabilities(net, data):
    return {"lipschitz_kl": hookflat.local_lipschitz(net, data, top="KL", start="uniform", **attack(2)).mean()}


@case("boundary_thickness", radius=1.5, step_size=0.3, steps=5, alpha=0.1, beta=0.6, points=9)
def boundary_thickness(net, data):
    options = {"radius": 1.5, "step_size": 0.3, "steps": 5, "alpha": 0.1, "beta": 0.6, "points": 9, "seed": SEED}
    return {"boundary_thickness": hookflat.boundary_thickness(net, data, **options).mean()}


@case("weight_norm")
def weight_norm(net, data):
    return {
        "weight_norm": hookflat.weight_norm(net),
        "distance_from_start": hookflat.distance_from_initialization(net, initial(net)),
    }


@case("trust", steps=2, queries=5, tolerance=0.01, surviving=0.5)
def trust(net, data):
    measured = hookflat.trust(net, data, queries=5, tolerance=0.01, surviving=0.5, **attack(2))
    return {f"trust_{name}": float(flag) for name, flag in measured.raised.items()} | {
        "rerr_one_start": measured.error,
        "rerr_single_step": measured.error_single_step,
        "rerr_four_times_the_steps": measured.error_steps,
        "rerr_2eps": measured.error_radius[0],
        "rerr_4eps": measured.error_radius[1],
        "zero_gradients": measured.zero_gradients,
        "broken_by_square_alone": measured.square,
    }


def initial(net):
    return {name: 3 * p.detach() for name, p in net.named_parameters()}


@pytest.mark.parametrize(("plugin", "options", "expected"), CASES)
def test_every_number_is_that_of_the_library(digits_net, plugin, options, expected):
    data = Examples(Digits(train=300, test=40).build_data().test.part(0, 12))
    measure = build(Catalogue().find(plugin).load(), options)
    measured = measure.measure(
        Subject(digits_net, "test", data, 10, Threat(EPS), STEP_SIZE, SEED, start=initial(digits_net))
    )
    numbers = {name: float(value) for name, value in expected(digits_net, data).items()}
    assert measured == pytest.approx(numbers, rel=1e-5, abs=1e-7)
    seen = [n for name, n in numbers.items() if n not in (0, 1) and name != "along_rise_peak"]  # which is at x
    assert len(set(seen)) == len(seen)  # one in the place of another would not go unnoticed


def test_both_norms_of_adaptive_sharpness_share_the_loss_at_the_weights(digits_net, monkeypatch):
    counts = []
    plain = adaptive_sharpness_of_the_library.robust_losses
    counted = lambda *arguments: (counts.append(1), plain(*arguments))[1]
    monkeypatch.setattr(adaptive_sharpness_of_the_library, "robust_losses", counted)
    data = Examples(Digits(train=300, test=40).build_data().test.part(0, 6))
    measure = build(Catalogue().find("adaptive_sharpness").load(), {"samples": 1, "iterations": 0, "steps": 1})
    measure.measure(Subject(digits_net, "test", data, 10, Threat(EPS), STEP_SIZE, SEED))
    assert len(counts) == 4 + 8  # of two losses by two kinds of logits, and a sample of each of two norms besides


def test_every_measure_of_the_protocol_is_here():
    stages = tomllib.loads((recipes_folder() / "protocols" / "critics.toml").read_text())["eval"].values()
    measures = {name for stage in stages for name, options in stage.items() if isinstance(options, dict)}
    assert measures == {case.values[0] for case in CASES}
