import re
import tomllib
import types

import pytest
import torch

from hookflat import UserError
from hookflat.recipe import shipped
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.shipped import find_recipe, recipes_folder
from hookflat.testing import TINY, recipe

SHIPPED = sorted(p for p in recipes_folder().glob("*.toml"))


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fails(message, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        load_recipe(*args, **kwargs)
    assert message in str(caught.value), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_alone_and_at_scale_and_open_with_their_command(path):
    alone = load_recipe(path)
    scaled = load_recipe(path, overlays=["scales/cifar10"])
    assert alone.slot_names["data"] == "digits"
    assert scaled.slot_names["data"] == "images"
    for slot in ("loss", "optimizer", "schedule"):  # a scale never changes the method
        assert scaled.slot_names[slot] == alone.slot_names[slot]
    assert scaled.plugins.keys() == alone.plugins.keys()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].strip("# ") == f"hookflat run recipes/{path.name}"


def test_every_training_plugin_has_a_recipe():
    from hookflat.recipe.catalogue import kind_of

    used = set()
    for path in [*SHIPPED, *recipes_folder().glob("*/*.toml")]:
        tables = tomllib.loads(path.read_text())
        used |= {t.get("name") for t in tables.values() if isinstance(t, dict)} | set(tables.get("plugins", {}))
        used |= {m for t in tables.get("eval", {}).values() if isinstance(t, dict) for m in t}
    shipped = {s.name for s in Catalogue() if kind_of(s.load()) != "tool" and s.package.startswith("hookflat ")}
    assert shipped - used == set()


def test_extends_merges_and_the_later_file_wins(tmp_path):
    write(tmp_path, "deep/base.toml", "[optimizer]\nlr = 0.5\nmomentum = 0.8\n[plugins.awp]\nxi = 0.1\n")
    write(tmp_path, "other.toml", "[optimizer]\nlr = 0.25\n")
    top = write(
        tmp_path,
        "top.toml",
        f'extends = ["{find_recipe("at")}", "deep/base.toml", "other.toml"]\n[plugins.label_noise]\n',
    )
    loaded = load_recipe(top)
    optimizer = loaded.slots["optimizer"]
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.25, 0.8, 5e-4)
    assert list(loaded.plugins) == ["augment", "early_stopping", "figures", "awp", "label_noise"]
    assert loaded.origin(("optimizer", "lr")) == f"{tmp_path}/other.toml:2"
    assert loaded.origin(("optimizer", "momentum")).endswith("base.toml:3")
    assert loaded.origin(("optimizer", "weight_decay")) == "default"


def test_what_several_files_extend_is_laid_once(tmp_path):
    """Where it first comes: laid again by the second it would undo the first."""
    for name, table in {"one": "[loss]\nname = 'mart'", "two": "[plugins.label_noise]"}.items():
        (tmp_path / f"{name}.toml").write_text(f"extends = 'at'\n{table}\n")
    (tmp_path / "both.toml").write_text("extends = ['one.toml', 'two.toml']\n")
    both = load_recipe(tmp_path / "both.toml")
    over = load_recipe(tmp_path / "one.toml", overlays=["scales/cifar10", tmp_path / "two.toml"])
    for loaded in (both, over):
        assert loaded.slot_names["loss"] == "mart"
        assert "label_noise" in loaded.plugins
    assert over.slot_names["data"] == "images"
    assert load_recipe(tmp_path / "one.toml", overlays=["at"]).slot_names["loss"] == "at"  # asked for by name


def test_a_slot_that_changes_its_plugin_drops_the_old_ones_options():
    loaded = load_recipe("at", overrides={"optimizer.name": "adam"})
    assert loaded.slots["optimizer"].lr == 1e-3


def test_overrides_win_and_say_where_they_came_from():
    loaded = load_recipe("trades", overrides=["loss.beta=3", "attack.eps=8/255", "run.epochs=7", "data.train=31"])
    assert loaded.slots["loss"].beta == 3
    assert loaded.slots["attack"].eps == pytest.approx(8 / 255)
    assert loaded.origin(("loss", "beta")) == "--set loss.beta"


def test_fractions_are_numbers_everywhere():
    loaded = load_recipe("at", overrides={"attack.eps": "1/10", "schedule.milestones": ["1/2", 0.75]})
    assert loaded.slots["attack"].eps == 0.1
    assert loaded.slots["schedule"].milestones == [0.5, 0.75]


def test_plugins_can_be_switched_off():
    loaded = load_recipe("at_awp", overrides={"plugins.awp.enabled": False})
    assert "awp" not in loaded.plugins


def test_the_resolved_recipe_loads_to_itself(tmp_path):
    loaded = load_recipe("entropy_sgd", overlays=["scales/cifar10"], overrides={"plugins.awp.xi": "1/200"})
    again = load_recipe(write(tmp_path, "again.toml", loaded.to_toml()))
    assert again.tables == loaded.tables


def test_a_table_with_if_used_changes_what_is_there_and_adds_nothing(tmp_path):
    overlay = write(
        tmp_path, "o.toml", "[plugins.awp]\nif_used = true\nxi = 0.5\n[eval.curves]\nif_used = true\nevery = 3\n"
    )
    assert "awp" not in load_recipe("at", overlays=[overlay]).plugins
    changed = load_recipe("at_awp", overlays=[overlay])
    assert changed.plugins["awp"].xi == 0.5
    assert changed.stages["curves"].every == 3


def test_a_scale_brings_its_network_instead_of_the_default_alone(tmp_path):
    mine = write(tmp_path, "mine.toml", 'extends = "at"\n[model]\nname = "preact_resnet"\nwidth = 8\n')
    kept = load_recipe(mine, overlays=["scales/cifar10"])
    assert (kept.slot_names["model"], kept.slots["model"].width) == ("preact_resnet", 8)
    assert kept.slots["attack"].eps == 8 / 255
    scale = load_recipe("at", overlays=["scales/cifar10"])
    assert (scale.slot_names["model"], scale.slots["model"].width) == ("resnet18", 64)
    again = load_recipe(write(tmp_path, "whole.toml", scale.to_toml()), overlays=["scales/cifar10"])
    assert again.tables == scale.tables
    assert load_recipe(mine, overlays=["scales/cifar10", "scales/wrn"]).slot_names["model"] == "wide_resnet"
    wrong = write(tmp_path, "n.toml", '[model]\nname = "resnet18"\ninstead_of = 3\n')
    with pytest.raises(UserError, match=r"n.toml:3: model.instead_of: should be the name of a plugin"):
        load_recipe("at", overlays=[wrong])
    wrong = write(tmp_path, "o.toml", '[plugins.awp]\ninstead_of = "sam"\n')
    with pytest.raises(UserError, match=r"o.toml:2: plugins.awp.instead_of"):
        load_recipe("at", overlays=[wrong])


@pytest.mark.parametrize(
    ("method", "network", "of", "rates"),
    [
        ("trades", "wrn", "official-trades", {1: 0.1, 74: 0.1, 75: 0.01, 76: 0.01}),
        ("mart", "resnet", "official-mart", {74: 0.01, 75: 1e-3, 89: 1e-3, 90: 1e-4, 99: 1e-4, 100: 1e-5, 120: 1e-5}),
        ("at_awp", "preact", "official-awp", {100: 0.1, 101: 0.01, 150: 0.01, 151: 1e-3, 200: 1e-3}),
    ],
)
def test_the_rates_of_the_official_codes(method, network, of, rates):
    """In their epochs, counted from 1, of 391 steps."""
    loaded = load_recipe(method, overlays=["scales/cifar10", f"scales/{network}", f"scales/{of}"])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], loaded.slots["optimizer"].lr)
    steps = types.SimpleNamespace(total_steps=loaded.run.epochs * 391)
    (rate,) = loaded.slots["schedule"].build_schedule(run=steps, optimizer=optimizer).lr_lambdas
    ours = {epoch: loaded.slots["optimizer"].lr * rate((epoch - 1) * 391) for epoch in rates}
    assert ours == pytest.approx(rates)
    assert loaded.run.epochs == max(rates)
    ends = [loaded.slots["optimizer"].lr * rate(epoch * 391 - 1) for epoch in rates]
    assert ends == pytest.approx([*rates.values()])


def test_shipped_recipes_can_be_extended_by_name(tmp_path):
    loaded = load_recipe(write(tmp_path, "mine.toml", 'extends = ["trades", "scales/cifar10"]\n[loss]\nbeta = 1\n'))
    assert loaded.slots["loss"].beta == 1
    assert loaded.slot_names["model"] == "resnet18"


def test_a_recipe_that_two_packages_ship_is_of_none(tmp_path, monkeypatch):
    write(tmp_path, "trades.toml", 'extends = "at"\n')
    write(tmp_path, "own.toml", 'extends = "at"\n')
    folders = shipped.recipe_folders()
    monkeypatch.setattr(shipped, "recipe_folders", lambda: (*folders, ("hookflat-mine", tmp_path)))
    assert load_recipe("own").slot_names["loss"] == "at"
    with pytest.raises(UserError, match=r"recipe 'trades' is of hookflat .* and hookflat-mine .*: give the file"):
        load_recipe("trades")
    assert load_recipe(tmp_path / "trades.toml").slot_names["loss"] == "at"


def test_overlays_of_a_method_do_not_lose_its_order():
    loaded = load_recipe("autoaugment", overlays=["scales/cifar10"])
    names = list(loaded.plugins)
    assert names.index("augment") < names.index("autoaugment")
    assert (loaded.plugins["augment"].padding, loaded.plugins["augment"].fill) == (4, "mean")


WRONG = {
    "unknown table": ("[los]\nbeta = 1\n", ":2: los: unknown table (did you mean 'loss'?)"),
    "unknown key": ("[loss]\nfractoin = 1\n", ":3: loss.fractoin: unknown option of 'at' (did you mean 'fraction'?)"),
    "wrong type": ("[run]\nepochs = 2.5\n", ":3: run.epochs: should be a valid integer"),
    "string for number": ('[run]\nepochs = "ten"\n', ":3: run.epochs: should be a valid integer"),
    "bool for int": ("[run]\nepochs = true\n", ":3: run.epochs: should be a valid integer"),
    "no fraction": ('[attack]\neps = "8/0"\n', "is neither a number nor a fraction"),
    "out of range": ("[loss]\nfraction = 2\n", ":3: loss.fraction: should be less than or equal to 1, not 2"),
    "negative": ("[plugins.awp]\nxi = -1\n", ":3: plugins.awp.xi: should be greater than or equal to 0"),
    "not finite": ("[plugins.awp]\nxi = nan\n", ":3: plugins.awp.xi: should be"),
    "not a choice": ('[attack]\nstart = "box"\n', ":3: attack.start: should be 'uniform_norm'"),
    "unknown plugin": ("[plugins.apw]\n", ":2: plugins.apw: no plugin is called 'apw' (did you mean 'awp'?)"),
    "unknown slot plugin": ('[loss]\nname = "trade"\n', "no plugin is called 'trade' (did you mean 'trades'?)"),
    "loss as plugin": ("[plugins.trades]\n", "plugin 'trades' is a loss: it belongs in [loss]"),
    "plugin as loss": (
        '[loss]\nname = "awp"\n',
        "plugin 'awp' is no slot's and no measure: it belongs in [plugins.NAME]",
    ),
    "measure as plugin": ("[plugins.robust_loss]\n", "is a measure: it belongs in [eval.STAGE.NAME]"),
    "key for table": ("plugins = 3\n", "plugins: should be a table"),
    "measure option": (
        "[eval.final.robust_loss]\nstesp = 1\n",
        ":3: eval.final.robust_loss.stesp: unknown option of 'robust_loss'",
    ),
    "an item of a list, or a number": (
        "[eval.final_flatness.average_flatness]\nxi = [1, -2]\n",
        ":3: eval.final_flatness.average_flatness.xi.1: should be greater than or equal to 0, not -2",
    ),
    "unknown split": ('[eval.final]\nsplits = ["tset"]\n', "eval.final.splits.0: should be 'train' or 'test'"),
    "options that contradict": ("[optimizer]\nmomentum = 0\n", "optimizer: nesterov needs momentum > 0"),
    "data overlap": ("[data]\ntrain = 1700\n", "data: train = 1700 and test = 700 overlap"),
    "unknown folder key": ('[run]\nfolder = "runs/{nope}"\n', ":2: run: folder fills in {recipe} and {seed} only"),
    "misspelt extends": ("[extend]\nx = 1\n", ":2: extend: unknown table (did you mean 'extends'?)"),
    "stage without measures": ("[eval.more]\nevery = 2\n", ":2: eval.more: a stage without measures"),
    "enabled": ("[plugins.awp]\nenabled = 1\n", ":3: plugins.awp.enabled: should be true or false"),
}


WRONG |= {
    "an exponent without end": ('[optimizer]\nlr = "1e999999999"\n', ":3: optimizer.lr: should be a finite number"),
    "a long exponent": ('[optimizer]\nlr = "1e9999999"\n', ":3: optimizer.lr: should be a finite number"),
    "5000 digits": (
        f"[optimizer]\nlr = {'1' * 5000}\n",
        "a number of thousands of digits (lr, at line 3)",
    ),
    "more than 64 bits": ("[run]\nseed = 0xfffffffffffffffff\n", ":3: run.seed: should have at most 64 bits, not 69"),
    "lists in lists": (f"[loss]\nfraction = {'[' * 500}{']' * 500}\n", "nested too deep (fraction, at line 3)"),
    "20 lists in lists": (
        f"[loss]\nfraction = {'[' * 20}{']' * 20}\n",
        ":3: loss.fraction: is nested more than 16",
    ),
    "tables in tables": (f"[{'.'.join(500 * 'a')}]\n", "a.a.a.....a: tables are nested more than 16 deep"),
    "100,000 tables in tables": (f"[{'.'.join(100_000 * 'a')}]\n", "more than 500 dots"),
    "a long text": (f'[loss]\nname = "{"x" * 5000}"\n', ":3: loss.name: should be text of at most 4000 characters"),
    "control characters": (
        '[loss]\nname = "\\u001b[31m"\n',
        ":3: loss.name: should be text without control",
    ),
    "misspelt name": ('[loss]\nnmae = "at"\n', ":3: loss.nmae: unknown option of 'at'"),
    "switched off, but misspelt": ("[plugins.apw]\nenabled = false\n", ":2: plugins.apw: no plugin is called 'apw'"),
    "20,000 faults": ("[run]\n" + "".join(f"x{i} = 1\n" for i in range(20_000)), ":3: run.x0: unknown option"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_name_file_line_key_and_the_nearest_right_spelling(tmp_path, case):
    text, message = WRONG[case]
    path = write(tmp_path, "r.toml", f'extends = "{find_recipe("at")}"\n{text}')
    said = fails(message, path)
    assert str(path) in said
    assert len(said.splitlines()) <= (21 if case == "20,000 faults" else 2)
    assert max(map(len, said.splitlines())) < 1200


def test_an_empty_recipe_and_a_wrong_extends_are_told_in_one_line(tmp_path):
    assert len(fails('begin with extends = "at"', write(tmp_path, "a.toml", "[run]\nseed = 1\n")).splitlines()) == 1
    fails(":2: extends should be a recipe or a list of them", write(tmp_path, "b.toml", "# b\nextends = 3\n"))


def test_stages_and_measures_can_be_left_out():
    off = {"eval.final_flatness.enabled": False, "eval.curves.clean_error.enabled": False}
    loaded = load_recipe("at", overrides=off)
    assert "final_flatness" not in loaded.stages
    assert list(loaded.measures["curves"]) == ["robust_loss"]


def test_all_faults_are_told_at_once(tmp_path):
    path = write(tmp_path, "r.toml", f'extends = "{find_recipe("at")}"\n[run]\nepoch = 1\nseed = -1\n[plugins.nope]\n')
    said = fails("run.epoch: unknown option (did you mean 'epochs'?)", path)
    assert "run.seed" in said
    assert "'nope'" in said


def test_unknown_tables_are_told_in_the_order_of_the_file():
    tables = {"zeta": {}, "alpha": {}, "mu": {}, "data": {"name": "digits"}}
    with pytest.raises(UserError) as told:
        load_recipe(tables)
    places = [str(told.value).index(f"{name}: unknown table") for name in ("zeta", "alpha", "mu")]
    assert places == sorted(places)


def test_a_missing_slot_and_broken_files(tmp_path):
    tables = {k: v for k, v in TINY.items() if k != "loss"}
    fails('loss: no plugin is named: write name = "..." in [loss]', tables)
    fails("not valid TOML", write(tmp_path, "a.toml", "[run\n"))
    fails(
        ":1: extends 'nowhere.toml', which is neither a file nor a shipped recipe",
        write(tmp_path, "b.toml", 'extends = "nowhere.toml"\n'),
    )
    circle = write(tmp_path, "c.toml", 'extends = "d.toml"\n')
    write(tmp_path, "d.toml", 'extends = "c.toml"\n')
    fails("in a circle: c.toml -> d.toml -> c.toml", circle)
    fails("no recipe traeds: neither a file nor a shipped recipe (did you mean 'trades'?)", "traeds")
    fails("table1 is a study of many runs: hookflat study table1", "table1")
    write(tmp_path, "recipe.toml", "")
    fails(f"{tmp_path} is a run's folder: its recipe is {tmp_path}/recipe.toml", tmp_path)
    with pytest.raises(UserError) as told:
        load_recipe("tabel1")
    assert "studies" not in str(told.value)
    fails("write it as table.key=value", "at", overrides=["loss.beta"])


def test_plugins_that_exclude_each_other(tmp_path):
    file = write(
        tmp_path,
        "alone.py",
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom hookflat import hookimpl\n"
        "@dataclass(eq=False)\nclass Alone:\n    excludes: ClassVar = {'awp': 'both perturb'}\n"
        "    @hookimpl\n    def after_step(self):\n        pass\n",
    )
    tables = recipe({"plugins": {"alone": {}, "awp": {}}})
    from hookflat.testing import TinyData, TinyModel

    catalogue = Catalogue([file, TinyData, TinyModel])
    fails("'alone' does not go with 'awp': both perturb", tables, catalogue=catalogue)


def test_the_same_measure_twice_on_a_split_at_the_end_is_found_early():
    tables = recipe({"eval": {"also": {"clean_error": {}}}})
    from hookflat.testing import TinyData, TinyModel

    fails(
        "eval.also.clean_error: measured on 'test' in [eval.final] already",
        tables,
        catalogue=Catalogue([TinyData, TinyModel]),
    )


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_files_that_are_no_recipes_are_named_with_their_line(tmp_path):
    file = tmp_path / "r.toml"
    for content, told in (
        (b"", f"{file}:1: names no plugin"),
        (b'extends = "at"\n[loss', f"{file}:2: not valid TOML"),
        (b'extends = "at"\n[loss]\nname = "', f"{file}:3: not valid TOML"),
        (b'extends = "at"\n# \xff\n', f"{file}:2: cannot be read: byte 0xff is no UTF-8 text"),
        (b"#" * 300_000, f"{file}: cannot be read: it has 300000 bytes"),
        (b'extends = "' + b"y" * 3000 + b'"\n', f"{file}:1: extends 'yyy"),
    ):
        file.write_bytes(content)
        assert len(fails(told, file)) < 1500


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('optimizer.lr="1e999999999"', "--set optimizer.lr: optimizer.lr: should be a finite number"),
        ("optimizer.lr=" + "1" * 5000, "--set optimizer.lr: a number of thousands of digits"),
        ("optimizer.lr=" + 500 * "[" + 500 * "]", "--set optimizer.lr: lists or tables are nested too deep"),
        (".".join(5000 * "a") + "=1", "tables are nested more than 16 deep"),
        ("run.seed=1\nx=2", "takes one value, in one line"),
        ("run.seed=1\n[loss]\nname='x'", "takes one value, in one line"),
        ("run.seed=1\r[loss]", "takes one value, in one line"),
        ('data.path="\\u0000"', "without control characters"),
        ("optimizer.lr=1e39", "should be a number of at most 3.4e+38, as float32 holds"),
        ('optimizer.lr="-1e38/1e-3"', "should be a number of at most 3.4e+38, as float32 holds"),
        ("run.folder=" + 600 * "a/", "run.folder: String should have at most 1000 characters"),
        ("extends=at", "stands in files alone: --with lays a recipe over"),
    ],
)
def test_overrides_are_read_in_the_same_bounds(override, told):
    assert len(fails(told, "at", overrides=[override])) < 300


def test_files_that_extend_without_end_or_hold_nothing_are_told(tmp_path):
    write(tmp_path, "101.toml", "[run]\nseed = 1\n")
    for number in range(101):
        write(tmp_path, f"{number}.toml", f'extends = "{number + 1}.toml"\n')
    fails("the recipe extends more than 100 files", tmp_path / "0.toml")
    fails("the recipe extends more than 100 files", "at", overlays=[tmp_path / "0.toml"])
    nothing = write(tmp_path, "nothing.toml", "# loss.beta = 3\n")
    fails(f"{nothing}:1: it is empty", "at", overlays=[nothing])


def test_values_from_python_too():
    fails("optimizer.lr: should have at most 64 bits", "at", overrides={"optimizer.lr": 10**5000})
    fails("run.3: no table and no option is called so", recipe({"run": {3: 4}}))


def test_fractions_are_the_nearest_numbers():
    from fractions import Fraction

    for above, below in ((8, 255), (1, 3), (2, 255), (1, 16), (335, 10_000)):
        loaded = load_recipe("at", overrides={"attack.eps": f"{above} / {below}"})
        assert loaded.slots["attack"].eps == float(Fraction(above, below))
    fails("attack.eps: should be a finite number", "at", overrides={"attack.eps": "nan"})
    fails("neither a number nor a fraction", "at", overrides={"attack.eps": "8/"})


NAMED = {
    "as it is": ({}, "runs/trades-0"),
    "a seed": ({"overrides": ["run.seed=1"]}, "runs/trades-1"),
    "a scale": ({"overlays": ["scales/cifar10"]}, "runs/trades+cifar10-0"),
    "values in the order of their keys": (
        {"overrides": ["run.epochs=2", "loss.beta=1/2", "run.epochs=3"]},
        "runs/trades+beta=1_2+epochs=3-0",
    ),
    "keys that end alike": (
        {"overrides": {"attack.eps": 0.1, "eval.eps": 0.1}},
        "runs/trades+attack.eps=0.1+eval.eps=0.1-0",
    ),
    "another folder": ({"overrides": ["run.folder=x/{recipe}", "loss.beta=3"]}, "x/trades+beta=3"),
}


@pytest.mark.parametrize(("given", "folder"), NAMED.values(), ids=NAMED)
def test_what_is_laid_over_a_recipe_names_its_folder(given, folder):
    assert str(load_recipe("trades", **given).folder) == folder


def test_many_values_are_named_by_their_hash_whatever_their_order():
    many = [f"eval.{stage}.examples={count}" for stage in ("curves", "through_training", "final") for count in (7,)]
    given = (many, many[::-1], [*many[:-1], "eval.final.examples=8"])
    first, again, other = (load_recipe("trades", overrides=values).folder.name for values in given)
    assert re.fullmatch(r"trades\+[0-9a-f]{8}-0", first)
    assert first == again != other


def test_a_file_of_plugins_names_its_folder(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from hookflat import hookimpl\nclass Mine:\n    @hookimpl\n    def criterion(self): ...\n")
    assert load_recipe("trades", catalogue=Catalogue([file])).folder.name == "trades+mine-0"


def test_a_method_that_is_its_batch_size_keeps_it_at_every_scale():
    small = [load_recipe("small_batch", overlays=scales).run for scales in ([], ["scales/cifar10"])]
    assert [options.scaled_batch_size for options in small] == [16, 32]
