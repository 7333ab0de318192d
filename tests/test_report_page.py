"""The page of a report."""

import base64
import csv
import hashlib
import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import BROWSER, hookflat
from made_runs import a_study, drawn, network, records, write

from hookflat import report
from hookflat.reporting.explorer import explorer
from hookflat.reporting.gathering import gather
from hookflat.reporting.table import table1

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """Its ids, its links, and whatever it would load."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href") and not value.startswith(
                "#"
            ):
                self.loads.append((tag, value))


def test_the_page_is_self_contained_and_every_link_leads_somewhere(tmp_path):
    a_study(tmp_path, lambda f: 0.5 + f, methods=8)
    text = report(tmp_path, resamples=50).page.read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.loads == [("link", "data:,")]
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(", text)
    assert {link for link in page.links if link[0] != "#" or link[1:] not in page.ids} == set()
    assert {f"#run-m{i}-{seed}" for i in range(8) for seed in range(3)} <= set(page.links)
    assert set(re.findall(r'(?:xlink:href|url)\(?="?#([^")]+)', text)) <= set(page.ids)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy.startswith("default-src 'none'; ")
    assert re.findall(r"sha256-([^']+)", policy) == digests
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_every_run_tells_recipe_seed_environment_protocol_and_time(tmp_path):
    write(tmp_path / "mine-0", "mine", 7, loss__beta=6.5)
    text = report(tmp_path, resamples=50).page.read_text()
    section = text[text.index('id="run-mine-0"') :]
    for words in (
        "recipe mine",
        "seed 7",
        "trained in 1.5 min",
        "measured in 0.1 min",
        "beta = 6.5",
        'href="#environment-1"',
    ):
        assert words in section
    assert "robustness: 200 test, 100 train examples: robust_loss (steps 20)" in text


def test_a_page_of_many_runs_stays_small(tmp_path, monkeypatch):
    a_study(tmp_path, lambda f: f, methods=3, seeds=2)
    whole = len(report(tmp_path, resamples=20).page.read_text())
    monkeypatch.setattr("hookflat.reporting.page.LIMIT", whole - 1)
    smaller = report(tmp_path, resamples=20).page.read_text()
    assert len(smaller) < whole
    assert "<summary>recipe</summary>" not in smaller
    assert "recipe is <code>recipe.toml</code> in its folder" in smaller
    assert 'id="run-m2-1"' in smaller
    monkeypatch.setattr("hookflat.reporting.page.LIMIT", 1)
    smallest = report(tmp_path, resamples=20).page.read_text()
    assert "<svg" not in smallest
    assert all(value.startswith("data:") for _, value in Page(smallest).loads)
    assert sum(tag == "img" for tag, _ in Page(smallest).loads) == smaller.count("<svg")


def test_figures_of_many_methods_can_be_read(tmp_path):
    a_study(tmp_path, lambda f: f, methods=45, seeds=1)
    for i in range(45):
        values = {"stage": "t", "split": "test", "average_flatness": 1.0, "rloss": 2.0}
        records(tmp_path / f"m{i}-0", [{"epoch": epoch, **values} for epoch in (1, 2)])
    drawings_ = drawn(tmp_path)
    texts = [t.get_text() for t in drawings_["fig1"].figure.axes[0].texts]
    assert texts == [f"m{i}" for i in (*range(20), *range(25, 45))]
    assert "the 20 methods of least test RErr and the 20 of largest" in drawings_["fig1"].caption
    assert [a.get_title() for a in drawings_["fig5"].figure.axes[:24]] == [f"m{i}" for i in range(24)]
    assert "The 24 of 45 methods" in drawings_["fig5"].caption


def test_markup_in_names_is_text(tmp_path):
    evil = "</script><script>x()</script><b onclick=x()>&mine</b>"
    for i in range(2):
        last = network(0.4 + 0.1 * i, 2.0 + i, 1.0 + i, **{"</script><i>": 1.0 + i})
        write(tmp_path / f"mine-{i}", f"{evil} {i}", last=last, notes__text="</pre><script>x</script>")
    text = report(tmp_path, resamples=20).page.read_text()
    page = Page(text)
    assert not {"b", "i"} & set(page.tags)
    assert page.tags.count("script") == text.count("<script") == 2
    assert "x()</script>" not in text
    data = json.loads(re.search(r'id="explore-data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["points"][0]["title"] == f"{evil} 0"


def test_names_that_mathematics_or_ids_would_trip_over(tmp_path):
    for name in ("a b", "a_b", "a$\\x$"):
        write(tmp_path / f"{name}-0", name)
    page = Page(report(tmp_path, resamples=20).page.read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if link[1:] not in page.ids} == set()


def test_rescaled_runs_of_a_grid_are_their_method_s(tmp_path):
    for name in ("trades-beta=1-0-x0.5", "at-0-x2", "at_awp-xi=1e-05-7-x0.5"):
        write(tmp_path / name, "?", 7 if "7" in name else 0, last=network(0.4, 2.0, 1.0) | {"rescaled": 0.5})
        (tmp_path / name / "eval.json").unlink()
    assert sorted(run.method for run in gather([tmp_path]).runs) == ["at", "at_awp", "trades"]


def test_the_same_runs_give_the_same_bytes(tmp_path):
    a_study(tmp_path / "runs", lambda f: f, methods=6)
    first, second = (report(tmp_path / "runs", folder=tmp_path / name, resamples=50).folder for name in "ab")
    names = sorted(str(f.relative_to(first)) for f in first.rglob("*") if f.is_file())
    assert {"report.html", "report.md", "table1.tex", "statistics.csv", "figures/fig1.svg", "figures/fig1.pdf"} <= set(
        names
    )
    assert not [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]


def test_figures_in_files_have_no_links_and_stale_ones_go(tmp_path):
    run = write(tmp_path / "at-0", "at")
    folder = report(tmp_path, resamples=20).folder
    assert "<a " not in (folder / "figures" / "fig1.svg").read_text()
    results = json.loads((run / "eval" / "digits-last-best" / "eval.json").read_text())
    del results["models"]["last"]["test"]["average_flatness"]
    (run / "eval" / "digits-last-best" / "eval.json").write_text(json.dumps(results))
    again = report(tmp_path, resamples=20)
    assert not (folder / "figures" / "fig1.svg").exists()
    assert again.verdict == ["Average-case flatness was not measured: these runs say nothing about the claim."]


def test_a_report_of_runs_as_they_are_made(tmp_path):
    """From a recipe to the page by the command line; the recipe's own measures where no protocol was."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        """
data = { name = "digits", train = 32, test = 40 }
model = { name = "resnet_small", width = 8 }
optimizer = { name = "sgd" }
schedule = { name = "multistep" }
attack = { name = "pgd", eps = 0.15, step_size = 0.05, steps = 1 }
loss = { name = "at" }
run = { epochs = 2, batch_size = 16, threads = 1 }
[eval.curves]
every = 1
splits = ["train", "test"]
examples = 10
[eval.curves.robust_loss]
steps = 1
restarts = 1
[eval.final]
splits = ["train", "test"]
examples = 20
[eval.final.robust_loss]
steps = 1
restarts = 1
[eval.final.average_flatness]
samples = 1
steps = 1
reference_restarts = 1
"""
    )
    assert hookflat("run", recipe, "--out", tmp_path / "runs" / "tiny-0").returncode == 0
    done = hookflat("report", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "The claim cannot be judged" in done.stdout or "too few networks" in done.stdout
    assert str(tmp_path / "runs" / "report" / "report.html") in done.stdout.replace("\n", "")
    results = json.loads((tmp_path / "runs" / "tiny-0" / "eval.json").read_text())
    (row,) = csv.DictReader((tmp_path / "runs" / "report" / "table1.csv").open())
    assert float(row["rerr_mean"]) == pytest.approx(100 * results["models"]["last"]["test"]["rerr_pgd"], rel=1e-4)
    assert (tmp_path / "runs" / "report" / "figures" / "fig2.png").exists()
    assert results["classes"] == 10


def test_the_script_draws_what_was_measured(tmp_path):
    """Numbers of both networks of every run, each with its method, seed, group and place on the page."""
    for seed in range(2):
        last = network(0.4, 2.0 + seed, 1.0, worst_flatness=0.01, train=0.1 + 0.1 * seed)
        write(tmp_path / f"at-{seed}", "at", seed, last=last, best=network(0.3, 1.5, 0.5 + seed))
    gathered = gather([tmp_path])
    data = explorer(gathered, table1(gathered))
    labels = [quantity["label"] for quantity in data["quantities"]]
    shown = ["RLoss", "RErr (AutoAttack)"]
    train, gaps = [f"{name}, training images" for name in shown], [f"gap of {name}" for name in shown]
    assert labels == [*shown, "average-case flatness", *train, *gaps]
    assert (labels[data["x"]], labels[data["y"]]) == ("average-case flatness", "RLoss")
    by_run = {(p["seed"], p["network"]): p for p in data["points"]}
    assert by_run.keys() == {(0, "last"), (1, "last"), (0, "early-stopped"), (1, "early-stopped")}
    assert by_run[1, "early-stopped"]["values"][:3] == [1.5, 0.3, 1.5]
    assert by_run[1, "last"]["values"][3] == 0.2
    assert by_run[1, "last"]["anchor"] == "run-at-1"
    assert not by_run[1, "last"]["rescaled"]
    assert data["methods"] == ["AT (baseline)"]
    write(tmp_path / "one" / "at-0", "at")
    alone = gather([tmp_path / "one"])
    assert explorer(alone, table1(alone)) == {}


def test_no_column_is_empty_and_a_phone_has_the_ones_that_matter(tmp_path):
    a_study(tmp_path, lambda f: f, methods=7, seeds=1)
    text = report(tmp_path, resamples=20).page.read_text()
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        rows = [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
            for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        ]
        assert all(any(cells) for cells in zip(*rows[1:], strict=True))
    heads = re.findall(r"<th([^>]*)>([^<]*)</th>", text[text.index('id="table1"') : text.index("<tbody>")])
    assert [head for attributes, head in heads if "minor" not in attributes] == [
        "method",
        "RErr test",
        "RLoss test",
        "average flatness",
    ]
    assert not re.search(r"\w\(s\)", text)
    assert "min-width: min(" not in text


POINTER = """<script>
const [point, tip, table] = [".point", ".tip", "#table1 ~ div table"].map((name) => document.querySelector(name));
const heading = [...table.querySelectorAll("th button")].find((button) => button.textContent === "RErr test");
const place = heading.parentNode.cellIndex;
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim());
const points = () => document.querySelectorAll(".point").length;
const said = { unsorted: column() };
point.dispatchEvent(new Event("pointerenter"));
said.tip = tip.hidden ? "" : tip.innerText;
point.dispatchEvent(new Event("pointerleave"));
said.left = tip.hidden;
heading.click();
said.rising = column();
heading.click();
said.falling = column();
document.querySelector(".methods input").click();
said.without = points();
document.querySelector("[name=stopped]").click();
said.stopped = points();
document.querySelector("[data-every=none]").click();
said.none = document.querySelector(".said").textContent;
document.querySelector("[data-every=all]").click();
const ys = document.querySelector("[name=y]");
ys.value = [...ys.options].find((option) => option.text === "RErr (AutoAttack)").value;
ys.dispatchEvent(new Event("change", { bubbles: true }));
said.axes = document.querySelector(".plot svg").getAttribute("aria-label");
document.body.dataset.said = JSON.stringify(said);
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
def test_the_script_in_a_browser(tmp_path):
    """It shows the figure, with a point for each last network, and makes headings buttons; nothing of it without."""
    a_study(tmp_path, lambda f: f, methods=7, seeds=1)
    page = report(tmp_path, resamples=20).page
    headless = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]

    def dom(page):
        command = [*headless, "--dump-dom", page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    drawn_ = dom(page)
    assert drawn_.count('class="point ') == 7
    assert 'aria-label="m0, seed 0: average-case flatness ' in drawn_
    assert re.search(r"Spearman [01].\d\d over 7 networks", drawn_)
    assert re.search(r'<th><button type="button">RErr test</button></th>', drawn_)
    assert 'class="point ' not in page.read_text()
    assert re.search(r'id="explore"[^>]* hidden', page.read_text())

    touched = page.with_name("touched.html")
    allowed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    touched.write_text(allowed.replace("</body>", POINTER))
    said = json.loads(html.unescape(re.search(r'data-said="([^"]*)"', dom(touched))[1]))
    assert re.fullmatch(r"m0, seed 0\s+average-case flatness \S+, RLoss \S+", said["tip"])
    assert said["left"]

    def numbers(cells):
        return [float(re.match(r"[\d.]+", cell)[0]) for cell in cells]

    assert numbers(said["rising"]) == sorted(numbers(said["unsorted"]))
    assert numbers(said["falling"]) == sorted(numbers(said["unsorted"]), reverse=True)
    assert (said["without"], said["stopped"]) == (6, 12)
    assert said["none"] == "No network has both, with these methods."
    assert said["axes"] == "RErr (AutoAttack) against average-case flatness"


CONTRASTS = """<body><script>
function luminance(color) {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3)
    .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  while (element.parentElement && getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)")
    element = element.parentElement;
  return getComputedStyle(element.parentElement ? element : document.body).backgroundColor;
}
const frame = document.createElement("iframe");
frame.src = "PAGE";
frame.onload = () => {
  const page = frame.contentDocument, least = {};
  for (const element of page.querySelectorAll("body *")) {
    const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!says || !element.getClientRects().length) continue;
    const kind = element instanceof frame.contentWindow.SVGElement ? "figure" : "page";
    const ink = getComputedStyle(element)[kind === "figure" ? "fill" : "color"];
    const [low, high] = [ink, behind(element)].map(luminance).sort((a, b) => a - b);
    least[kind] = Math.min(least[kind] ?? 21, (high + 0.05) / (low + 0.05));
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.body.dataset.found = JSON.stringify({dark, page: behind(page.body), least});
};
document.body.append(frame);
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_all_text_can_be_read_on_a_light_and_on_a_dark_page(tmp_path, scheme):
    """Contrast at least 4.5 to 1, WCAG's AA: of the page's text and of that in its figures."""
    a_study(tmp_path, lambda f: f, methods=7, seeds=1)
    page = report(tmp_path, resamples=20).page
    frame = tmp_path / "frame.html"
    frame.write_text(CONTRASTS.replace("PAGE", page.as_uri()))
    seen = in_chromium(frame, f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}")
    assert seen["dark"] == (scheme == "dark")
    assert seen["page"] == ("rgb(18, 22, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert min(seen["least"].values()) >= 4.5
    assert set(seen["least"]) == {"page", "figure"}


WITHOUT_SCRIPT = """<body><script>
const frame = document.createElement("iframe");
frame.sandbox = "allow-same-origin";
frame.src = "PAGE";
frame.onload = () => {
  const page = frame.contentDocument, of = selector => [...page.querySelectorAll(selector)];
  const seen = selector => of(selector).filter(element => element.getClientRects().length).length;
  document.body.dataset.found = JSON.stringify({
    explorer: seen("#explore"), buttons: of("th button").length,
    figures: [seen("figure svg"), of("figure svg").length],
    rows: [seen("#table1 ~ .table tbody tr"), of("#table1 ~ .table tbody tr").length],
  });
};
document.body.append(frame);
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
def test_a_browser_without_script_shows_figures_and_tables_and_no_control(tmp_path):
    a_study(tmp_path, lambda f: f, methods=7, seeds=1)
    page = report(tmp_path, resamples=20).page
    frame = tmp_path / "frame.html"
    frame.write_text(WITHOUT_SCRIPT.replace("PAGE", page.as_uri()))
    seen = in_chromium(frame)
    assert (seen["explorer"], seen["buttons"]) == (0, 0)
    assert seen["figures"][0] == seen["figures"][1] >= 3
    assert seen["rows"][0] == seen["rows"][1] >= 7
    frame.write_text(WITHOUT_SCRIPT.replace("PAGE", page.as_uri()).replace("-origin", "-origin allow-scripts"))
    assert in_chromium(frame)["explorer"] == 1  # what switches it off is the missing permission


WIDTHS = """<body><script>
const widths = [1280, 390], found = {};
function next() {
  const width = widths.pop();
  if (!width) { document.body.dataset.found = JSON.stringify(found); return; }
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; border: 0`;
  frame.src = "PAGE";
  frame.onload = () => {
    const page = frame.contentDocument, table = page.querySelector("#table1 ~ .table .wide");
    found[width] = [page.documentElement.scrollWidth, table.scrollWidth - table.clientWidth];
    next();
  };
  document.body.append(frame);
}
next();
</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
def test_a_page_of_many_measures_fits_a_screen_and_a_phone_without_scrolling_sideways(tmp_path):
    """The one that README leads to, in today's style, and its Table 1."""
    example = (ROOT / "docs/examples/cifar10-mini/report.html").read_text()
    today = (ROOT / "hookflat/reporting/page.html").read_text()
    (tmp_path / "page.html").write_text(example.replace(style_of(example), style_of(today)))
    frames = tmp_path / "frames.html"
    frames.write_text(WIDTHS.replace("PAGE", "page.html"))
    seen = in_chromium(frames, "--hide-scrollbars", "--window-size=1400,900")
    assert seen == {"1280": [1280, 0], "390": [390, 0]}


def in_chromium(page, *options):
    """What the script of `page` found in the pages it framed: its body's `data-found`."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={page.with_name('profile')}", "--virtual-time-budget=5000"]
    command += [*options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done)[1]))


def style_of(text):
    return re.search(r"<style>\s*(.*?)\s*</style>", text, re.DOTALL)[1]
