"""Signs that RErr is too low, on networks that were made to show them, and on an honest one that shows none."""

import json
from dataclasses import asdict

import pytest
import torch
from made_runs import network, write
from torch import nn

from hookflat import Quantity, UserError, report, robust_error, trust
from hookflat.functional.trust import TRUST_FLAGS, dynamic, probabilities, randomised
from hookflat.recipe.catalogue import Catalogue
from hookflat.records.results import NetworkResults
from hookflat.testing import run_recipe
from hookflat.training.console import trusted
from hookflat_plugins.digits import Digits

ATTACK = {"eps": 0.1, "step_size": 0.02, "steps": 10}


class Around(nn.Module):
    """Something around a network."""

    def __init__(self, net, forward):
        super().__init__()
        self.net, self.say = net, forward

    def forward(self, x):
        return self.say(self.net, x)


def looking_for_itself(net, x):
    with torch.enable_grad():
        here = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net(here).amax(dim=1).sum(), here)
    return net(x + 1e-3 * gradient.sign())


def off_the_grid(net, x):
    """The gradient of stored images alone, whose pixels are multiples of 1/255."""
    stored = ((255 * x).round() / 255 - x).abs().amax(dim=(1, 2, 3), keepdim=True) < 1e-6
    return net(torch.where(stored, x, x.detach()))


def a_row_at_a_time(net, x):
    """The gradient of one row of pixels, another one at every step."""
    row = (1e4 * x.flatten(1).sum(dim=1)).long() % x.shape[2]
    here = nn.functional.one_hot(row, x.shape[2]).bool()[:, None, :, None]
    return net(torch.where(here, x, x.detach()))


class Tired(nn.Module):
    """A network that has no gradients any more after it was asked for so many; it counts where nobody puts it back."""

    asked = 0

    def __init__(self, net, patience):
        super().__init__()
        self.net, self.patience = net, patience
        Tired.asked = 0

    def forward(self, x):
        Tired.asked += len(x) * x.requires_grad
        return self.net(x if Tired.asked <= self.patience else x.detach() + 0 * x)


PLANTED = {
    "honest": lambda net, x: net(x),
    "randomised": lambda net, x: net(x + 0.1 * torch.randn_like(x)),
    "probabilities": lambda net, x: net(x).softmax(dim=1),
    "dynamic": looking_for_itself,
    "quantised": lambda net, x: net((x * 4).round() / 4),
    "huge logits": lambda net, x: 1e5 * net(x),
    "off the grid": off_the_grid,
    "a row at a time": a_row_at_a_time,
}


@pytest.fixture(scope="module")
def net():
    """A perceptron trained with noise: cheap to attack thousands of times."""
    train = Digits(train=300, test=40).build_data().train
    x, y = train.x.float() / 255, train.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(150):
            noisy = (x + 0.15 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(noisy), y).backward()
            optimizer.step()
    net.zero_grad()
    return net.eval()


@pytest.fixture(scope="module")
def looks(net, digits_pair):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            name: trust(Around(net, forward), digits_pair, queries=100, tolerance=0.05, **ATTACK)
            for name, forward in PLANTED.items()
        }


def flags(looks):
    return {name for name, raised in looks.raised.items() if raised}


def test_an_honest_network_raises_no_flag(looks):
    assert flags(looks["honest"]) == set()
    assert looks["honest"].raised.keys() == TRUST_FLAGS.keys() - {"transfer"}
    error, radii = looks["honest"].error, looks["honest"].error_radius
    assert error <= radii[0] <= radii[1]
    assert looks["honest"].error_steps >= error


def test_a_network_that_is_robust_at_a_small_radius_need_not_break_altogether_at_four_times_it(net, digits_pair):
    small = {"eps": 0.04, "step_size": 0.01, "steps": 10}
    for surviving, raised in ((0.5, False), (0.0, True)):
        measured = trust(net, digits_pair, queries=0, tolerance=0.05, surviving=surviving, **small)
        assert measured.error < 0.5 < measured.error_radius[1] < 0.95
        assert measured.raised["radius"] == raised


def test_a_radius_that_breaks_less_than_a_smaller_one_is_seen(net, digits_pair):
    """Far from the images it has no gradients; at twice the radius nearly all of it is broken already."""
    images = digits_pair[0].flatten(1)

    def near(net, x):
        far = torch.cdist(x.flatten(1), images, p=torch.inf).amin(dim=1) > 2.5 * ATTACK["eps"]
        return net(torch.where(far[:, None, None, None], x.detach() + 0 * x, x))

    measured = trust(Around(net, near), digits_pair, queries=0, tolerance=0.05, surviving=1.0, **ATTACK)
    assert measured.error <= measured.error_radius[0]
    assert measured.error_radius[1] < measured.error_radius[0] - 0.05
    assert measured.raised["radius"]


@pytest.mark.parametrize("name", ["randomised", "probabilities", "dynamic"])
def test_what_a_network_does_is_seen(looks, name):
    assert name in flags(looks[name])
    others = {"randomised", "probabilities", "dynamic"} - {name}
    assert not flags(looks[name]) & others


@pytest.mark.parametrize("name", ["quantised", "huge logits"])
def test_masked_gradients_are_seen(looks, name):
    """PGD does little to them, and each of these says so: zero gradients, the radius, Square."""
    masked = looks[name]
    assert masked.error < looks["honest"].error
    assert flags(masked) >= {"zero_gradients", "square"}
    assert "radius" in flags(masked)
    assert masked.zero_gradients > 0.5


def test_square_is_asked_only_about_what_pgd_leaves_right(net, digits_pair, monkeypatch):
    from pyautoattack.square import SquareAttack

    masked, asked, perturb = Around(net, PLANTED["quantised"]), [], SquareAttack.perturb
    monkeypatch.setattr(SquareAttack, "perturb", lambda self, x, y: asked.append((x, y)) or perturb(self, x, y))
    measured = trust(masked, digits_pair, queries=50, **ATTACK)
    monkeypatch.undo()
    plain = robust_error(masked, digits_pair, restarts=1, seed=0, **ATTACK).wrong
    [(x, y)] = asked
    assert torch.equal(x, digits_pair[0][~plain])
    with torch.no_grad():
        x_adv = SquareAttack(masked, "Linf", 50, ATTACK["eps"], seed=0, device="cpu").perturb(x, y)
        broken = int((masked(x_adv).argmax(dim=1) != y).sum())
    assert 0 < broken < len(y)
    assert measured.square == pytest.approx(broken / len(plain))


def test_more_steps_than_one_should_break_more_and_many_more_not_many_more(looks):
    """PGD starts off the grid, where there is no gradient; a row at a time, it takes as many times the steps."""
    one, many = looks["off the grid"], looks["a row at a time"]
    assert flags(one) & {"single_step", "steps", "inconsistent"} == {"single_step"}
    assert one.error_single_step > one.error + 0.05
    assert flags(many) & {"single_step", "steps", "inconsistent"} == {"steps"}
    assert many.error_steps > many.error + 0.05


def test_a_network_that_more_steps_break_less_has_changed_its_answers(net, digits_pair):
    """It masks its gradients when the attack of few steps is over; none of the package's checks sees that."""
    measured = trust(Tired(net, 300), digits_pair, queries=0, tolerance=0.05, **ATTACK)
    assert measured.error_steps < measured.error - 0.05
    assert flags(measured) >= {"inconsistent"}
    assert not flags(measured) & {"randomised", "dynamic", "zero_gradients", "steps"}


def test_a_sibling_breaks_what_masked_gradients_hide(net, digits_pair):
    options = {"queries": 0, "tolerance": 0.05, "sibling": net, **ATTACK}
    masked = trust(Around(net, PLANTED["huge logits"]), digits_pair, **options)
    assert masked.raised["transfer"]
    assert masked.error_transfer > masked.error + 0.05
    itself = trust(net, digits_pair, **options)
    assert not itself.raised["transfer"]
    assert "square" not in itself.raised


def test_the_checks_agree_with_the_package_s(net, digits_pair, recwarn):
    from pyautoattack import checks

    x, y = digits_pair
    for name in ("honest", "randomised", "probabilities", "dynamic"):
        planted = Around(net, PLANTED[name]).eval()
        ours = [randomised(planted, x, y), probabilities(planted, x), dynamic(planted, x)]
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it counts on
        theirs = []
        for check, images in (
            (checks.check_randomized, (x, y)),
            (checks.check_range_output, (x,)),
            (checks.check_dynamic, (x,)),
        ):
            recwarn.clear()
            check(planted, *images)
            theirs.append(bool(recwarn.list))
        assert ours == theirs, name
        assert sum(ours) == (name != "honest"), name


def test_a_network_is_dynamic_only_while_it_asks_for_gradients(net, digits_pair):
    x, _ = digits_pair
    assert dynamic(Around(net, looking_for_itself), x)
    assert not dynamic(net, x)  # nothing stays counted


def test_flags_are_words_on_the_console():
    declared = {"a": Quantity("first", "flag"), "b": Quantity("second", "flag"), "c": Quantity("C", "share")}
    some, none = NetworkResults(test={"a": 1.0, "b": 0.0, "c": 0.5}), NetworkResults(test={"a": 0.0, "b": 0.0})
    assert trusted(some, declared) == ["test: RErr may be too low: first"]
    assert trusted(none, declared) == ["test: no sign that RErr is too low (2 were looked for)"]
    assert trusted(NetworkResults(test={"c": 0.5}), declared) == []
    assert declared["a"].text(1.0) == "raised"


def test_networks_with_the_same_flags_share_a_sentence(tmp_path):
    more = Catalogue().find("trust").load()().numbers()
    for i in range(7):
        numbers = network(0.4, 2.0 + i, 1.0)
        numbers["test"] |= {"trust_radius": float(i < 6), "trust_square": float(i == 6)}
        folder = write(tmp_path / f"n{i}-0", f"n{i}", last=numbers)
        file = folder / "eval" / "digits-last-best" / "eval.json"
        results = json.loads(file.read_text())
        results["numbers"] |= {key: asdict(quantity) for key, quantity in more.items()}
        file.write_text(json.dumps(results))
    done = report(tmp_path, resamples=10)
    told = [line for line in done.verdict if "too low" in line]
    assert told[0].startswith("RErr of n0-0, n1-0, n2-0, n3-0 and 2 more (last) may be too low: larger radii break")
    assert told[1].startswith("RErr of n6-0 (last) may be too low:")
    assert len(told) == 2
    listed = (done.folder / "report.md").read_text().split("### Signs that RErr is too low")[1].split("## Figures")[0]
    page = done.page.read_text().split('<h3 id="trust">')[1].split("</table>")[0]
    for i in range(7):  # nobody hides behind "and 2 more"
        words = more["trust_square" if i == 6 else "trust_radius"].label
        assert f"| n{i}-0 | last | {words} |" in listed
        assert f'<td><a href="#run-n{i}-0">n{i}-0</a></td><td>last</td><td>{words}</td>' in page


def test_flags_and_external_numbers_stand_in_table_and_report(tmp_path):
    more = Catalogue().find("trust").load()().numbers()
    masked = network(0.4, 2.0, 1.0) | {}
    masked["test"] |= {"trust_radius": 1.0, "trust_square": 0.0}
    honest = network(0.5, 2.5, 1.2)
    honest["test"] |= {"trust_radius": 0.0, "trust_square": 0.0}
    stopped = network(0.5, 2.2, 1.1)
    stopped["test"] |= {"trust_radius": 0.0, "trust_square": 1.0}
    four = (("masked", masked), ("honest", honest), ("stopped", honest), ("unknown", network(0.6, 3.0, 1.4)))
    for name, numbers in four:
        folder = write(tmp_path / f"{name}-0", name, last=numbers, best=stopped if name == "stopped" else None)
        file = folder / "eval" / "digits-last-best" / "eval.json"
        results = json.loads(file.read_text())
        results["numbers"] |= {key: asdict(quantity) for key, quantity in more.items()}
        file.write_text(json.dumps(results))
    (tmp_path / "external.csv").write_text("run,rerr,source\nmasked-0,45,RobustBench\nhonest-0,49.5,a paper\n")
    done = report(tmp_path, resamples=10)
    said = " ".join(done.verdict)
    assert "RErr of masked-0 (last) may be too low: larger radii break too little." in said
    assert "RErr of honest-0 (last)" not in said
    assert "RErr of masked-0: 45.0 % (RobustBench), ours 40.0 %: the external attack breaks more." in said
    assert "RErr of honest-0: 49.5 % (a paper), ours 50.0 %." in said
    heads, rows = done.table.texts()
    cells = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    flags_of = {name: cells[name]["trust"] for name, _ in four}
    assert flags_of == {"masked": "1 flag", "honest": "ok", "stopped": "1 flag", "unknown": ""}
    assert cells["masked"]["external RErr"] == "45.0"
    page = done.page.read_text()
    assert '<td class="minor"><a href="#trust">1 flag</a></td>' in page
    assert '<td class="minor">ok</td>' in page


def test_external_numbers_of_another_threat_stand_beside_nothing(tmp_path):
    write(tmp_path / "at-0", "at")
    for eps, here in (("0.15", True), ("0.3", False), ("", True)):
        lines = f"run,rerr,source,norm,eps\nat-0,45,ours,Linf,{eps}\nat-0,99,another norm,L2,{eps}\n"
        (tmp_path / "external.csv").write_text(lines)
        said = " ".join(report(tmp_path, resamples=10).verdict)
        assert ("RErr of at-0: 45.0 % (ours)" in said) == here
        assert "99.0" not in said


def test_reports_without_flags_are_as_they_were(tmp_path):
    write(tmp_path / "at-0", "at")
    done = report(tmp_path, resamples=10)
    assert "trust" not in done.table.texts()[0]
    assert "too low" not in " ".join(done.verdict)
    assert "too low" not in (done.folder / "report.md").read_text()
    assert 'id="trust"' not in done.page.read_text()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("run,rerr\nat-0,45\n", "needs the columns run, rerr, source"),
        ("run,rerr,source\nat-1,45,x\n", r"line 2: there is no run 'at-1' beside it.*at-0"),
        ("run,rerr,source\nat-0,0.45e,x\n", "line 2: rerr should be in %"),
        ("run,rerr,source\nat-0,145,x\n", "line 2: rerr should be in %"),
        ("run,rerr,source\nat-0,45,\n", "line 2: say in the column source"),
        ("run,rerr,source,norm\nat-0,45,x,Linv\n", "line 2: norm should be one of .*not 'Linv'.*Linf"),
        ("run,rerr,source,eps\nat-0,45,x,big\n", "line 2: eps should be a radius.*not 'big'"),
    ],
)
def test_wrong_external_numbers_are_told_with_file_and_line(tmp_path, lines, told):
    write(tmp_path / "at-0", "at")
    (tmp_path / "external.csv").write_text(lines)
    with pytest.raises(UserError, match=told):
        report(tmp_path, resamples=10)


def test_a_sibling_is_a_run(tmp_path):
    tables = {"eval": {"final": {"trust": {"steps": 1, "queries": 2, "sibling": str(tmp_path / "nowhere")}}}}
    with pytest.raises(UserError, match="is not the folder of a run"):
        run_recipe(tables, tmp_path / "other")


def test_another_seeds_run_is_a_sibling_and_the_run_itself_is_none(tmp_path):
    tables = {"data": {"name": "digits", "train": 128, "test": 40}, "model": {"name": "resnet_small", "width": 8}}
    tables |= {"run": {"epochs": 1}, "attack": {"name": "pgd", "eps": 0.1, "step_size": 0.05, "steps": 1}}
    first, second = tmp_path / "first", tmp_path / "second"
    run_recipe(tables, first)
    measured = {"trust": {"steps": 2, "queries": 0, "sibling": str(first)}}
    tables["eval"] = {"eps": 0.1, "final": {"splits": ["test"], **measured}}
    run_recipe(tables | {"run": {"epochs": 1, "seed": 1}}, second)
    test = json.loads((second / "eval.json").read_text())["models"]["last"]["test"]
    assert 0 <= test["rerr_one_start"] <= 1
    assert 0 < test["rerr_transfer"] <= 1
    assert test["trust_transfer"] == float(test["rerr_transfer"] > test["rerr_one_start"] + 0.02)
    with pytest.raises(UserError, match=r"first has the weights that are measured: take the run of another seed"):
        run_recipe(tables | {"run": {"epochs": 1, "seed": 0}}, tmp_path / "third")
