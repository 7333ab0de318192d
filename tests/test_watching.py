"""The page that follows a folder: its facts, who may read them, and what a real browser makes of them."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from threading import Thread

import pytest
from commands import BROWSER, fails, hookflat
from filelock import FileLock
from made_runs import network, write

from hookflat.errors import Stopped
from hookflat.studies.execution import times_of
from hookflat.watching.server import Server
from hookflat.watching.watched import Watched

MARKUP = "<img src=x onerror=document.title='owned'>"
RECIPE = """
[run]
epochs = 10
epochs_factor = 2.0
"""


def run_of(folder, *, epochs, results=False):
    """What a run of twenty epochs leaves after some of them: RLoss falls on train, from 2 to 1, and is 2 on test."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "environment.json").write_text("{}")
    lines = []
    for epoch in range(1, epochs + 1):
        for split, rloss in (("train", 1 + 1 / epoch), ("test", 2.0)):
            lines.append({"epoch": epoch, "step": epoch, "stage": "curves", "split": split, "rloss": rloss})
        lines.append(
            {"epoch": epoch, "step": epoch, "stage": "training", "split": "train", "lr": 0.1, "loss": float("nan")}
        )
    if epochs:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        (folder / "eval.json").write_text("{}")
    return folder


@pytest.fixture
def study(tmp_path):
    """One done, one at work, one failed, one stopped, one to do; the failed one's name and reason are markup."""
    folder = tmp_path / "a study"
    run_of(folder / "at-0", epochs=20, results=True)
    run_of(folder / "trades-0", epochs=5)
    run_of(folder / "mart-0", epochs=3)
    names = ["at-0", "trades-0", "mart-0", "bad", "later"]
    plan = {"name": "s", "runs": [{"name": n, "results": f"{n}/eval.json"} for n in names]}
    plan["runs"][3]["name"] = "<b>bad</b>"
    (folder / "plan.json").write_text(json.dumps(plan))
    times = [
        {"run": "at-0", "seconds": 100.0, "was": "todo"},
        {"run": "<b>bad</b>", "seconds": 1.0, "was": "failed", "why": MARKUP},
    ]
    (folder / "times.jsonl").write_text("\n".join(map(json.dumps, times)) + '\n{"run": "cut o')
    (folder / "trades-0.log").write_text(f"epoch 5\n{MARKUP}\n")
    with FileLock(folder / "trades-0" / ".lock"):
        yield folder


@contextmanager
def served(folder):
    with Server(Watched(folder)) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(server, path, host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


# --- the facts --------------------------------------------------------------------------------------------------------


def test_a_study_s_states_and_failures_are_those_of_its_folder(study):
    facts = Watched(study).facts()
    assert {run["name"]: run["state"] for run in facts["runs"]} == {
        "at-0": "done",
        "trades-0": "training",
        "mart-0": "stopped",
        "<b>bad</b>": "failed",
        "later": "to do",
    }
    assert facts["states"] == {"done": 1, "training": 1, "stopped": 1, "failed": 1, "to do": 1}
    assert [run["why"] for run in facts["runs"] if run["why"]] == [MARKUP]
    assert {run["epochs"] for run in facts["runs"][:3]} == {20}


def test_a_failed_run_that_is_made_again_is_no_failure(study):
    with (study / "times.jsonl").open("a") as times:
        times.write("\n" + json.dumps({"run": "<b>bad</b>", "seconds": 9.0, "was": "begun"}) + "\n")
    assert "failed" not in Watched(study).facts()["states"]
    assert [line["was"] for line in times_of(study)] == ["todo", "failed", "begun"]


def test_time_left_is_the_rate_so_far(study):
    """Five of twenty epochs took 50 seconds: 150 are left. The study has 100 s a run, 3/4 of one and two whole ones."""
    run, now = study / "trades-0", time.time()
    for file, age in (("recipe.toml", 51), ("environment.json", 50), ("metrics.jsonl", 0)):
        os.utime(run / file, (now - age, now - age))
    facts = Watched(study).facts()
    assert facts["runs"][1]["left"] == pytest.approx(150, abs=2)
    assert facts["left"] == pytest.approx(100 * (0.75 + 2))


def test_a_resumed_run_is_judged_by_what_was_seen_of_it(study):
    run, now = study / "trades-0", time.time()
    os.utime(run / "recipe.toml", (now - 9000, now - 9000))
    watched = Watched(study)
    assert watched.facts()["runs"][1]["left"] is None
    watched._seen["trades-0"] = (now - 20, 3)
    assert watched.facts()["runs"][1]["left"] == pytest.approx(150, abs=2)


def test_curves_are_the_finite_numbers_of_the_metrics(study):
    curves = Watched(study).curves("trades-0")
    charts = {chart["title"]: chart for chart in curves["charts"]}
    assert charts["rloss"]["lines"]["train"] == [[e, 1 + 1 / e] for e in range(1, 6)]
    assert charts["rloss"]["lines"]["test"] == [[e, 2.0] for e in range(1, 6)]
    assert "loss" not in charts
    assert Watched(study).curves("../a study/at-0") is None


def test_half_a_line_waits_until_it_is_whole(study):
    watched, metrics = Watched(study), study / "trades-0" / "metrics.jsonl"
    assert watched.facts()["runs"][1]["epoch"] == 5
    with metrics.open("a") as file:
        file.write('{"epoch": 6, "st')
    assert watched.facts()["runs"][1]["epoch"] == 5
    with metrics.open("a") as file:
        file.write('ep": 6, "stage": "training", "split": "train", "lr": 0.1}\n')
    assert watched.facts()["runs"][1]["epoch"] == 6


@pytest.mark.parametrize(
    "recipe", ["run = 1", "[[run]]", "[run]\nepochs = 3\nepochs_factor = 'x'", "[run]\nepochs = []"]
)
def test_a_damaged_recipe_is_one_that_says_nothing(study, recipe):
    (study / "trades-0" / "recipe.toml").write_text(recipe)
    facts = Watched(study).facts()
    assert [run["epoch"] for run in facts["runs"] if run["name"] == "trades-0"] == [5]
    assert Watched(study).curves("trades-0")["charts"]


def test_one_run_and_a_folder_of_runs_without_a_plan(study, tmp_path):
    assert [run["name"] for run in Watched(study / "at-0").facts()["runs"]] == ["at-0"]
    (study / "plan.json").unlink()
    assert [run["name"] for run in Watched(study).facts()["runs"]] == ["at-0", "mart-0", "trades-0"]
    (tmp_path / "empty").mkdir()
    assert "nothing has begun in it" in fails(2, "watch", tmp_path / "empty")
    assert "--port" in fails(2, "watch", study, "--port", "99999")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_as_every_command(study, monkeypatch, number):
    def stopped(server):
        raise Stopped(number)

    monkeypatch.setattr(Server, "serve_forever", stopped)
    assert hookflat("watch", study).returncode == 128 + number


# --- who may read them ------------------------------------------------------------------------------------------------


def test_it_answers_on_the_loopback_interface_to_its_own_names_alone(study):
    with served(study) as server:
        assert server.server_address[0] == "127.0.0.1"
        port = server.server_port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert asked(server, "/facts", host)[0] == 200
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1.evil.example:{port}",
            "localhost:1",
        ):
            for path in ("/", "/facts", "/curves?run=at-0"):
                status, body, _ = asked(server, path, host)
                assert status == 421
                assert b"at-0" not in body


def test_it_only_reads_and_only_what_is_shown(study):
    with served(study) as server:
        for path in (
            "/../plan.json",
            "/plan.json",
            "/curves",
            "/curves?run=../..",
            "/curves?run=%2e%2e",
            "//etc/passwd",
        ):
            status, body, _ = asked(server, path)
            assert (status, body) == (404, b"{}")
        assert asked(server, "/facts", method="POST")[0] == 501
        status, body, headers = asked(server, "/")
        assert status == 200
        assert b"<script>" not in body
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Access-Control-Allow-Origin"] is None


# --- a browser --------------------------------------------------------------------------------------------------------


def seen(url, folder, milliseconds=10_000):
    """The document as a headless browser has it after some seconds of the page's life."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    command = [BROWSER, *options, f"--timeout={milliseconds}", f"--virtual-time-budget={milliseconds}", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_plan_curves_and_failures_follows_them_and_runs_no_markup(study, tmp_path):
    """From the fourth answer on two hours are left, and the page says so."""
    with served(study) as server:
        facts, count = server.watched.facts, 0

        def later():
            nonlocal count
            count += 1
            return facts() | ({"left": 7200.0} if count > 3 else {})

        server.watched.facts = later
        page = seen(f"{server.url}#trades-0", tmp_path / "profile")
    assert count > 3
    assert "5 runs: 1 done, 1 training, 1 failed, 1 stopped, 1 to do; about 2.0 h left" in page
    assert page.count("<polyline") == 3
    assert 'aria-label="rloss"' in page
    assert "owned" in page  # as text, escaped
    assert not re.search(r"<img|<b>bad", page)
    assert "&lt;b&gt;bad&lt;/b&gt;" in page
    assert "<title>5 runs" in page


def test_a_run_that_is_done_shows_what_the_study_measured(tmp_path):
    """Not the numbers of its training's curves, which are of other examples; a rescaled run has none of those."""
    write(tmp_path / "at-0", "at", last=network(0.4, 2.5, 1.0))
    plan = {"name": "s", "runs": [{"name": "at-0", "results": "at-0/eval/digits-last-best/eval.json"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "at-0" / "metrics.jsonl").write_text(
        json.dumps({"epoch": 10, "step": 10, "stage": "curves", "split": "test", "rloss": 1.0}) + "\n"
    )
    facts = Watched(tmp_path).facts()
    assert facts["runs"][0]["state"] == "done"
    assert facts["runs"][0]["numbers"] == {
        "RLoss, test": "2.500",
        "RErr (AutoAttack), test": "40.0 %",
        "average-case flatness, test": "1.000",
        "clean error, test": "5.0 %",
    }
    assert facts["left"] is None
