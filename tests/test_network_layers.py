import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from hookflat.functional.layers import Autocast, RecenteredBatchNorm2d


@pytest.mark.parametrize("momentum", [0.1, 0.3, None])
def test_recentered_batch_norm_is_batch_norm_with_weight_plus_one(momentum):
    torch.manual_seed(0)
    ours, theirs = RecenteredBatchNorm2d(4, momentum=momentum), nn.BatchNorm2d(4, momentum=momentum)
    assert not ours.weight.any()
    assert not ours.bias.any()
    for _ in range(3):
        with torch.no_grad():
            ours.weight.normal_()
            theirs.weight.copy_(1 + ours.weight)
            theirs.bias.copy_(ours.bias.normal_())
        x = 2 + 3 * torch.randn(5, 4, 3, 3)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name))
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_statistics_can_be_estimated_anew():
    norm = RecenteredBatchNorm2d(2)
    batches = [torch.randn(6, 2, 3, 3) + i for i in range(4)]
    update_bn(batches, nn.Sequential(norm))
    assert torch.allclose(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0), atol=1e-6)


def test_bfloat16_runs_low_and_answers_in_float32():
    net = nn.Linear(8, 3)
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    assert Autocast(net)(torch.rand(2, 8)).dtype == torch.float32
    assert seen == [torch.bfloat16]
