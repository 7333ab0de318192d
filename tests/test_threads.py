"""Threads on a busy machine."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hookflat import Images, threads
from hookflat.testing import tiny_run
from hookflat.training.fitting import WORK_OF_A_THREAD, fitting_threads


def python(code, **environment):
    """What a new interpreter says, without the settings of the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


SAID = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


@pytest.mark.parametrize("imported", ["hookflat", "hookflat.cli", "hookflat.__main__"])
def test_whoever_imports_hookflat_first_waits_passively(imported):
    said, warned = python(f"import {imported}, sys; assert 'torch' not in sys.modules; {SAID}")
    assert (said, warned) == ("PASSIVE", "")


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7"), ("KMP_BLOCKTIME", "1")]
)
def test_a_choice_of_the_users_stays(name, value):
    said, _ = python(f"import hookflat; {SAID}", **{name: value})
    assert said == (value if name == "OMP_WAIT_POLICY" else "None")


@pytest.mark.skipif(threads.cores() < 2, reason="one core waits for nobody")
def test_where_torch_was_first_it_is_said_once():
    said, warned = python(f"import torch, hookflat, hookflat.threads; import hookflat; {SAID}")
    assert said == "None"
    assert warned.count("torch was imported before hookflat") == (0 if torch.cuda.is_available() else 1)
    assert python(f"import torch, hookflat; {SAID}", OMP_NUM_THREADS="1")[1] == ""


def test_threads_follow_the_work_and_keep_to_the_share(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    net, many = nn.Conv2d(3, 64, 3, padding=1), Images(torch.zeros(3200, 3, 32, 32).byte(), torch.zeros(3200).long())
    forward = 2 * 3 * 9 * 64 * 32 * 32 * 32  # multiplications and additions
    assert fitting_threads(net, many.part(0, 32)) == round(forward / WORK_OF_A_THREAD) == 2
    assert fitting_threads(net, many.part(0, 1)) == 1
    assert fitting_threads(net, many) == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert fitting_threads(net, many) == threads.limit() == 3
    assert net.training


@pytest.mark.parametrize(
    ("asked", "share", "used"), [(0, None, 1), (2, None, 2), (2, "1", 1), (1, "4", 1), (9, None, 8)]
)
def test_a_run_has_the_threads_of_its_recipe_within_its_share(asked, share, used, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 8)
    if share:
        monkeypatch.setenv("OMP_NUM_THREADS", share)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS")
    with tiny_run({"run": {"threads": asked}}):
        assert torch.get_num_threads() == used
