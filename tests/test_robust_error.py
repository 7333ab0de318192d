"""RErr alone: the same numbers as RLoss's RErr, and fewer passes."""

import pytest
import torch
from torch import nn

import hookflat
from hookflat.functional import attack_view, robustness
from hookflat.functional.data import Images
from hookflat.functional.examples import Examples
from hookflat.functional.work import Work

ATTACK = {"eps": 0.1, "step_size": 0.03, "steps": 5, "restarts": 3}


SEEN = []


class Counted(nn.Module):
    """Counts examples; what it computes depends on data, so it cannot be traced."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        if x.sum() >= 0:
            SEEN.append((len(x), x.requires_grad))
        return self.net(x)


@pytest.mark.parametrize("options", [{}, {"steps": 0}, {"restarts": 1}, {"restarts": 0}, {"eps": 0.3}])
@pytest.mark.parametrize("batch", [7, 250])
def test_the_same_examples_as_robust_loss_calls_wrong(digits_net, digits_pair, options, batch):
    x, y = (t[:60] for t in digits_pair)
    images = Examples(Images((x * 255).round().to(torch.uint8), y), batch_size=batch)
    slow = hookflat.robust_loss(digits_net, images, **ATTACK | options)
    fast = hookflat.robust_error(digits_net, images, **ATTACK | options)
    assert torch.equal(fast.wrong, slow.per_example.wrong)
    assert torch.equal(fast.clean_wrong, slow.per_example.clean_wrong)
    assert (fast.error, fast.clean_error) == (slow.error, slow.clean_error)
    assert slow.error > slow.clean_error or options in ({"steps": 0}, {"restarts": 0})


def test_a_linear_models_robust_error_in_closed_form():
    torch.manual_seed(1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x, y = 0.25 + 0.5 * torch.rand(200, 1, 8, 8), torch.randint(0, 2, (200,))
    w, b = linear[1].weight.double(), linear[1].bias.double()
    margin = (2 * y - 1).double() * (x.flatten(1).double() @ (w[1] - w[0]) + b[1] - b[0])
    measured = hookflat.robust_error(linear, (x, y), eps=0.05, step_size=0.02, steps=10, restarts=2)
    assert torch.equal(measured.wrong, margin < 0.05 * (w[1] - w[0]).abs().sum())


def test_what_is_broken_gets_no_more_passes_and_the_rest_is_packed(digits_net, digits_pair):
    x, y = (t[:64] for t in digits_pair)
    net = Counted(digits_net).eval()
    work = Work()
    SEEN.clear()
    loader = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]
    measured = hookflat.robust_error(net, loader, eps=0.3, step_size=0.1, steps=5, restarts=3, work=work)
    attacked = [n for n, gradient in SEEN if gradient]
    right = int((~measured.clean_wrong).sum())
    assert measured.error > 0.9
    assert sum(attacked) == work.tally.passes < right * 5  # of the 15 of robust_loss
    assert attacked[: right // 16] == [16] * (right // 16)


def test_the_network_itself_confirms_what_its_view_found(digits_net, digits_pair, monkeypatch):
    """A view that calls every image wrong changes no number: the network is asked, and then searched itself."""
    x, y = (t[:40] for t in digits_pair)
    expected = hookflat.robust_error(digits_net, (x, y), **ATTACK)

    class Liar(nn.Module):
        def forward(self, x):
            return -digits_net(x)

    monkeypatch.setattr("hookflat.functional.robustness.attack_view", lambda model: Liar())
    assert torch.equal(hookflat.robust_error(digits_net, (x, y), **ATTACK).wrong, expected.wrong)


@pytest.mark.parametrize("lies", [False, True])
def test_a_search_in_low_precision_breaks_what_fp32_breaks(digits_net, digits_pair, monkeypatch, lies):
    """And reports the network's own numbers, even where the low precision is all wrong."""
    x, y = (t[:40] for t in digits_pair)

    class Liar(nn.Module):
        def forward(self, x):
            return -digits_net(x)

    if lies:
        real = robustness.attack_view
        monkeypatch.setattr(robustness, "attack_view", lambda m, p="fp32": Liar() if p == "bf16" else real(m, p))
    exact = hookflat.robust_loss(digits_net, (x, y), **ATTACK).per_example
    low = hookflat.robust_loss(digits_net, (x, y), precision="bf16", **ATTACK)
    alone = hookflat.robust_error(digits_net, (x, y), precision="bf16", **ATTACK)
    both = low.per_example
    assert exact.wrong.any()
    assert not (exact.wrong & ~both.wrong).any()
    assert not (exact.wrong & ~alone.wrong).any()
    robust = ~both.wrong
    assert (both.loss >= exact.loss - 1e-6)[robust].all()
    if lies:
        assert torch.equal(both.wrong, exact.wrong)
        assert torch.equal(alone.wrong, exact.wrong)
    else:
        assert low.loss == pytest.approx(exact.loss.mean().item(), rel=0.02)


@pytest.mark.parametrize("measure", [hookflat.robust_loss, hookflat.robust_error])
def test_a_search_in_low_precision_that_breaks_a_whole_batch_is_the_last(digits_net, digits_pair, measure):
    """No empty batch goes through the network, which might not take it."""

    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_net

        def forward(self, x):
            logits = self.net(x)
            return logits.view(logits.size(0), -1)

    x, y = (t[:20] for t in digits_pair)
    measured = measure(Flattening().eval(), [(x, y)], precision="bf16", **ATTACK | {"eps": 0.5})
    assert measured.error == 1


@pytest.mark.parametrize(("pays", "searched"), [(True, 2), (False, 1)])
def test_a_search_in_the_precision_that_pays_is_made_once_where_that_is_fp32(digits_net, monkeypatch, pays, searched):
    monkeypatch.setattr(attack_view, "bf16_pays", lambda device: pays)
    views = robustness.searched_views(digits_net, hookflat.Attack(precision="auto"))
    assert len(views) == searched


def test_restarts_that_go_round_in_circles_end(digits_net, digits_pair):
    """Doldo et al. (2025): the same RErr as that of `robust_loss`, which takes every step."""
    x, y = (t[:16] for t in digits_pair)
    work, attack = Work(), {"eps": 0.08, "step_size": 0.03, "steps": 100, "restarts": 1}
    long = hookflat.robust_error(digits_net, (x, y), work=work, **attack)
    reference = hookflat.robust_loss(digits_net, (x, y), **attack)
    assert torch.equal(long.wrong, reference.per_example.wrong)
    robust = int((~long.wrong).sum())
    assert robust > 5
    assert work.tally.passes < 0.7 * robust * 100


def test_an_image_that_does_not_move_takes_one_step():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        linear[1].weight.zero_()
        linear[1].bias.copy_(torch.tensor([1.0, 0.0]))
    work = Work()
    measured = hookflat.robust_error(
        linear, (torch.rand(5, 1, 4, 4), torch.zeros(5).long()), steps=50, restarts=3, work=work
    )
    assert measured.error == 0
    assert work.tally.passes == 5 * 3
