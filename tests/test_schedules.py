"""Learning rates step by step, against the curves of the protocol."""

import numpy as np
import pytest

from hookflat.testing import tiny_run


def rates(schedule, epochs=10):
    """The rate of every step, and the number of steps."""
    with tiny_run({"schedule": schedule, "optimizer": {"lr": 0.05}, "run": {"epochs": epochs}}) as run:
        found = []
        for _ in range(run.total_steps):
            found.append(run.optimizer.param_groups[0]["lr"])
            run.optimizer.step()
            run.schedule.step()
        return found


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_cyclic_is_a_triangle_from_zero_to_the_peak_and_back(cycles):
    found = rates({"name": "cyclic", "peak": 0.2, "cycles": cycles})
    steps = len(found)
    corners = np.linspace(0, steps, 2 * cycles + 1)
    expected = np.interp(np.arange(steps), corners, [0.2 * (i % 2) for i in range(2 * cycles + 1)])
    assert found == pytest.approx(expected, abs=1e-12)
    assert max(found) == pytest.approx(0.2, abs=0.2 * 2 * cycles / steps)


@pytest.mark.parametrize("factor", [0.1, 0.316])
def test_multistep_drops_at_shares_of_the_training(factor):
    found = rates({"name": "multistep", "milestones": ["2/5", "3/5", "4/5"], "factor": factor})
    expected = [0.05 * factor**drops for drops in range(4) for _ in range((12, 6, 6, 6)[drops])]
    assert found == pytest.approx(expected, rel=1e-12)


def test_constant_is_constant():
    assert set(rates({"name": "constant"})) == {0.05}
