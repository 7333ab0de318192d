from dataclasses import dataclass

from hookflat import RunFolder, fingerprint, hookimpl, new_figure
from hookflat.testing import run_recipe
from hookflat_plugins.figures import flatness_through_training, overfitting


def records(flatness, rloss):
    return [
        {"epoch": e, "stage": "through", "split": "test", "average_flatness": f, "rloss": r, "rerr_pgd": 0.7}
        for e, (f, r) in enumerate(zip(flatness, rloss, strict=True), start=1)
    ]


def axes_of(figure):
    return figure.axes[0]


@dataclass(eq=False)
class Draws:
    """Looks at the data and the network of its run."""

    @hookimpl
    def draw(self, run):
        figure = new_figure(1, 1)
        figure.text(0, 0, f"{run.data.num_classes} {run.epoch} {fingerprint(*run.network.state_dict().values())}")
        return {"mine": figure}


def test_figures_that_a_killed_command_left_out_are_of_the_same_network(tmp_path):
    folder = run_recipe({"plugins": {"draws": {}}}, tmp_path / "run", [Draws]).folder
    drawn = folder / "figures" / "mine.svg"
    before = drawn.read_bytes()
    drawn.unlink()
    RunFolder(folder).undrawn.touch()
    run_recipe({"plugins": {"draws": {}}}, folder, [Draws])
    assert drawn.read_bytes() == before


def test_one_early_snapshot_far_off_sets_no_limits_and_is_told():
    figure = flatness_through_training(records([40, 0.5, 0.6, 0.8, 1.0, 1.1], [2.0, 2.1, 2.3, 2.4, 2.5, 2.6]), 6)
    low, high = axes_of(figure).get_xlim()
    assert 0 < low < 0.5
    assert 1.1 < high < 2
    assert [t.get_text() for t in axes_of(figure).texts] == ["early snapshots outside: 1"]


def test_early_snapshots_that_are_near_are_shown():
    figure = flatness_through_training(records([0.3, 0.5, 0.6, 0.8, 1.0, 1.1], [1.9, 2.1, 2.3, 2.4, 2.5, 2.6]), 6)
    assert axes_of(figure).get_xlim()[0] < 0.3
    assert not axes_of(figure).texts


def test_two_epochs_make_figures():
    two = records([0.9, 0.5], [2.3, 2.0])
    low, high = axes_of(flatness_through_training(two, 2)).get_xlim()
    assert low < 0.5
    assert high > 0.9
    assert axes_of(overfitting(two, 2)).get_ylim()[1] > 2.3
    one = two[:1]
    assert axes_of(flatness_through_training(one, 1)).get_xlim()[0] < 0.9
