"""The figures of a report."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import PROTOCOL, drawn, landscape, network, records, told, write
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from hookflat.reporting import drawings, style, through_training
from hookflat.reporting.gathering import gather
from hookflat.reporting.labels import label
from hookflat.reporting.table import table1

PAGE_HTML = Path(drawings.__file__).with_name("page.html")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 24), st.floats(0.02, 0.4))
def test_labels_lie_on_no_other_label_on_no_fit_and_inside_the_axes(seed, count, spread):
    rng = np.random.default_rng(seed)
    figure = Figure(figsize=(7.2, 5.0), dpi=100)
    axes = figure.subplots()
    centres = rng.random((3, 2))
    points = [tuple(centres[i % 3] + spread * rng.normal(size=2)) for i in range(count)]
    axes.scatter(*zip(*points, strict=True))
    axes.margins(0.12)
    fit = (min(points), max(points))
    boxes = label(figure, axes, points, [f"method {'x' * (i % 7)}{i}" for i in range(count)], fits=[fit])
    inside = axes.get_window_extent()
    along = axes.transData.transform(np.linspace(*fit, 500))
    assert not any(box.contains(*point) for box in boxes for point in along)
    for i, box in enumerate(boxes):
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
        assert not any(box.shrunk(0.98, 0.98).overlaps(other) for other in boxes[:i])


def test_a_line_leads_to_a_point_that_a_label_does_not_stand_beside_alone():
    figure = Figure(figsize=(7.2, 5.0), dpi=100)
    axes = figure.subplots()
    points = [(0.1, 0.1), (0.5, 0.5), (0.505, 0.505), (0.9, 0.9)]
    axes.scatter(*zip(*points, strict=True))
    label(figure, axes, points, ["alone", "near", "nearer", "far"])
    assert sorted(tuple(np.round(line.get_xydata()[0], 3)) for line in axes.lines) == [(0.5, 0.5), (0.505, 0.505)]


def test_every_figure_is_drawn_or_says_what_is_missing(tmp_path):
    write(tmp_path / "at-0", "at")
    bare = drawn(tmp_path)
    assert [name for name, d in bare.items() if d.figure] == ["fig1", "fig1_gap", "fig7"]
    assert bare["fig4"].caption == "No run has landscapes: hookflat eval RUN --protocol landscapes."
    for i, xi in enumerate((0.001, 0.005, 0.01)):
        last = network(0.4, 3 - i, 2 - 0.5 * i, worst_flatness=0.01)
        run = write(tmp_path / f"at_awp-xi={xi}-0", "weight_attack", last=last, awp__xi=xi)
        t = [-1.0, 0.0, 1.0]
        columns = {"t": t, "rloss_0": [5.0, 1.0, 5.0], "rloss_1": [3.0, 1.0, 7.0], "rerr_0": [1.0, 0.25, 1.0]}
        landscape(run / "eval" / "landscapes-last", columns)
        (run / "eval" / "landscapes-last" / "eval.json").write_text((run / "eval.json").read_text())
        through = [
            {"epoch": e, "stage": "curves", "split": split, "rloss": e / (1 + (split == "train")), "rerr_pgd": 0.1 * e}
            for e in range(1, 11)
            for split in ("train", "test")
        ]
        snapshots = [
            {"epoch": e, "stage": "snap", "split": "test", "rloss": e, "average_flatness": 0.1 * e} for e in (5, 10)
        ]
        records(run, [*through, *snapshots])
    full = drawn(tmp_path)
    assert all(d.figure for d in full.values())
    lines = {line.get_label(): line for line in full["fig4"].figure.axes[0].get_lines()}
    assert list(lines["AT-AWP, xi 0.001 (40.0 %)"].get_ydata()) == [4.0, 1.0, 6.0]  # the mean of two directions
    curves = {line.get_label(): list(line.get_ydata()) for line in full["fig2"].figure.axes[0].get_lines()}
    assert curves["test"] == list(range(1, 11))
    assert curves["train"] == [e / 2 for e in range(1, 11)]
    assert [text.get_text() for text in full["fig6"].figure.axes[0].get_legend().get_texts()] == [
        "AT-AWP, xi 0.001 to 0.01"
    ]


def test_landscapes_of_other_data_are_not_averaged(tmp_path):
    t = [-1.0, 0.0, 1.0]
    for i, name in enumerate(("digits", "digits", "other")):
        run = write(tmp_path / f"at-{i}", "at", i, data__name=name)
        columns = {"t": t, "rloss_0": [3.0 + i, 1.0, 3.0], "rerr_0": [1.0, 0.25, 1.0]}
        landscape(run / "eval" / "digits-last-best", columns, points=3)
    (line,) = drawn(tmp_path)["fig4"].figure.axes[0].get_lines()
    assert list(line.get_ydata()) == [3.5, 1.0, 3.0]
    why = gather([tmp_path]).left_out
    assert ("at-2, its landscape", "measured otherwise than the other landscapes") in why


def test_the_kink_lies_at_log_k_between_two_lines(tmp_path):
    x = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    y = [0.3, 0.41, 0.5, 0.6, 0.62, 0.63]
    for i, (rloss, rerr) in enumerate(zip(x, y, strict=True)):
        write(tmp_path / f"m{i}-0", f"m{i}", last=network(rerr, rloss, 1.0))
    axes = drawn(tmp_path)["fig7"].figure.axes[0]
    kink, below, above = axes.get_lines()
    assert kink.get_xdata()[0] == pytest.approx(math.log(10))
    for line, part in ((below, slice(0, 3)), (above, slice(3, 6))):
        slope, intercept = np.polyfit(x[part], 100 * np.array(y[part]), 1)
        assert line.get_ydata() == pytest.approx([intercept + slope * e for e in (min(x[part]), max(x[part]))])


def test_of_many_configurations_a_method_stands_for_its_hyper_parameters_by_its_best(tmp_path, monkeypatch):
    """Of few each has its name, its colour and an entry of its group in the legend."""
    for beta, rerr in ((1.0, 0.5), (6.0, 0.3), (9.0, 0.4)):
        write(tmp_path / f"trades-{beta}-0", "trades_beta9", last=network(rerr, 2.0, beta / 5), loss__beta=beta)
    write(tmp_path / "at-0", "at")
    axes = drawn(tmp_path)["fig1"].figure.axes[0]
    assert sorted(t.get_text() for t in axes.texts) == [
        "AT (baseline)",
        "TRADES, beta 1",
        "TRADES, beta 6",
        "TRADES, beta 9",
    ]
    assert all(tuple(c) != to_rgba("0.5") for dots in axes.collections for c in dots.get_facecolor())
    monkeypatch.setattr(drawings, "FEW", 3)
    figure = drawn(tmp_path)["fig1"].figure
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    shown = {tuple(c) for dots in figure.axes[0].collections if len(dots.get_offsets()) for c in dots.get_facecolor()}
    assert to_rgba("0.5", 0.7) in shown
    assert len(named) == len({c[:3] for c in shown} - {to_rgb("0.5")})  # nothing in the legend that is nowhere
    assert sorted(t.get_text() for t in figure.axes[0].texts) == ["AT (baseline)", "TRADES"]
    (mark,) = (t for t in figure.axes[0].texts if t.get_text() == "TRADES")
    assert mark.xy == pytest.approx((1.2, 2.0))


def luminance(colour):
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_every_colour_is_read_on_white_and_on_the_dark_page():
    """A contrast of 3 to 1, as WCAG 2.1 asks of graphics (1.4.11)."""
    dark = re.search(r"prefers-color-scheme: dark.*?--page: (#\w+)", PAGE_HTML.read_text(), re.DOTALL)[1]
    used = [*drawings.COLOURS.values(), *drawings.CYCLE, style.TREND]
    used += [through_training.TRAIN, through_training.TEST, through_training.CORRECT, through_training.INCORRECT]
    for colour in used:
        for page in ("#ffffff", dark):
            low, high = sorted(map(luminance, (colour, page)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, page)


THREATS = [("Linf", 0.15), ("L2", 0.15), ("Linf", 0.3), (None, 0.15)]  # recipes older than the norm are L-infinity's


def snapshots(folder, method, seed, norm, eps, rloss=2.0):
    run = write(folder / f"{method}-{seed}", method, seed, **({"eval__norm": norm} if norm else {}), eval__eps=eps)
    values = {"stage": "t", "split": "test", "average_flatness": 1.0, "rloss": rloss}
    records(run, [{"epoch": epoch, **values} for epoch in (5, 10)])


def test_trainings_measured_in_another_norm_or_radius_are_no_panels(tmp_path):
    for i, (norm, eps) in enumerate(THREATS):
        snapshots(tmp_path, f"m{i}", 0, norm, eps)
    fig5 = drawn(tmp_path)["fig5"]
    assert [axes.get_title() for axes in fig5.figure.axes if axes.get_title()] == ["m0", "m3"]
    assert (
        "Left out, as measured otherwise through the training: m1-0 (norm is L2, Linf for the others) and "
        "m2-0 (eps is 0.3, 0.15 for the others)." in fig5.caption
    )


def test_curves_of_another_norm_are_in_no_mean(tmp_path):
    for seed, (norm, eps) in enumerate(THREATS):
        snapshots(tmp_path, "at", seed, norm, eps, rloss=[2.0, 9.0, 9.0, 4.0][seed])
    fig2 = drawn(tmp_path)["fig2"]
    (curve,) = [line for line in fig2.figure.axes[0].get_lines() if line.get_label() == "test"]
    assert list(curve.get_ydata()) == [3.0, 3.0]
    assert "mean of 2 seeds" in fig2.caption
    assert "at-1 (norm is L2, Linf for the others) and at-2 (eps is 0.3, 0.15 for the others)" in fig2.caption


L2 = PROTOCOL | {"norm": "L2", "eps": 0.35, "step_size": 0.07}


def test_a_report_in_another_norm_has_that_norms_curves_and_landscapes_alone_and_no_numbers_of_the_paper(tmp_path):
    """Trained and watched in L-infinity, measured in L2."""
    for i, method in enumerate(("at", "mart", "gelu", "silu")):
        run = write(
            tmp_path / f"{method}-0",
            method,
            0,
            last=network(0.3 + 0.1 * i, 1.5 + i, 0.4 + 0.1 * i),
            protocol=L2,
            shipped=True,
        )
        values = {"stage": "t", "average_flatness": 1.0, "rloss": 2.0}
        records(run, [{"epoch": e, "split": split, **values} for e in (5, 10) for split in ("train", "test")])
        own = json.loads((run / "eval.json").read_text())
        (run / "eval.json").write_text(json.dumps(own | {"protocol": PROTOCOL | {"norm": "Linf"}}))
        landscape(run, {"t": [-1.0, 0.0, 1.0], "rloss_0": [2.0, 1.0, 2.0], "rerr_0": [0.5, 0.4, 0.5]})
    gathered, figures = gather([tmp_path]), drawn(tmp_path)
    assert gathered.norm == "L2"
    for name in ("fig2", "fig4", "fig5"):
        assert figures[name].figure is None
    assert "at-0, its landscape: not in the report's norm, L2" in [": ".join(out) for out in gathered.left_out]
    assert not table1(gathered).with_paper
    assert "paper" not in " ".join(told(tmp_path))


def test_evaluations_in_another_norm_are_left_out_with_a_word(tmp_path):
    for seed in range(2):
        run = write(tmp_path / f"at-{seed}", "at", seed, last=network(0.4, 2.0, 1.0))
        other = run / "eval" / "l2-last"
        shutil.copytree(next((run / "eval").iterdir()), other)
        results = json.loads((other / "eval.json").read_text())
        (other / "eval.json").write_text(json.dumps(results | {"protocol": results["protocol"] | L2}))
    left_out = [": ".join(out) for out in gather([tmp_path]).left_out]
    assert left_out == [f"at-{seed}, l2-last: in the norm L2, the report is in Linf" for seed in range(2)]
