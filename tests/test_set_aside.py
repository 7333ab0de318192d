"""Tensors set aside: as they were, without taking memory."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from hookflat.training.set_aside import set_aside

TENSORS = {
    "odd": torch.randn(7, dtype=torch.bfloat16),
    "double": torch.randn(3, 2, dtype=torch.float64),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(2.5),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "integers": torch.arange(5),
}


@pytest.fixture(params=["on disk", "in memory"])
def room(request, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if request.param == "in memory":
        monkeypatch.setattr(tempfile, "TemporaryFile", full)


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("tensors", [TENSORS, {}], ids=["several", "none"])
def test_they_stay_as_they_were(tensors):
    live = {name: nn.Parameter(t.clone(), requires_grad=t.is_floating_point()) for name, t in tensors.items()}
    aside = set_aside(live.items())
    with torch.no_grad():
        for t in live.values():
            t.mul_(3)
    assert aside.keys() == tensors.keys()
    for name, t in tensors.items():
        assert aside[name].dtype == t.dtype
        assert not aside[name].requires_grad
        assert torch.equal(aside[name], t)


def test_they_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    aside = set_aside(TENSORS.items())
    assert not [*tmp_path.iterdir()]
    aside["integers"].add_(1)  # whoever has them may write to them
    assert torch.equal(aside["integers"], TENSORS["integers"] + 1)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory as Linux tells it")
def test_they_take_memory_only_when_they_are_read():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    live = torch.ones(2**24)  # 64 MiB
    before = resident()
    aside = set_aside([("weight", live)])
    assert resident() - before < 2**11  # pages
    assert aside["weight"].sum() == 2**24
    assert resident() - before > 2**13
