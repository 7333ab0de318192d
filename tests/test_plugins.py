import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hookflat import UserError, hookimpl, hookspecs
from hookflat.recipe.catalogue import HOOKS, SLOTS, Catalogue, hooks_of, kind_of
from hookflat.recipe.loading import load_recipe
from hookflat.recipe.options import describe
from hookflat.testing import TinyData, TinyModel, recipe, tiny_run
from hookflat.training.hooks import Hooks

ROOT = Path(__file__).parents[1]


def test_the_hooks_are_these():
    """A written-down list: the surface does not grow by accident."""
    assert HOOKS == (
        "build_data", "build_model", "build_optimizer", "build_schedule",
        "transform_batch", "attack_objective", "craft", "gradients", "loss", "extra_loss", "criterion", "after_step",
        "epoch_end", "eval_model", "measure", "draw",
    )  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_how_answers_combine_and_its_specification_agrees(hook):
    spec = getattr(hookspecs, hook)
    words = re.match(r"(Slot `\[(\w+)\]`|First|All)", spec.__doc__)
    assert words, f"{hook} does not open with Slot, First or All"
    assert spec.hookflat_spec["firstresult"] == (not words[1].startswith("All"))
    if words[2]:
        assert SLOTS[words[2]] == hook


def test_the_core_knows_no_plugin():
    for path in (ROOT / "hookflat").rglob("*.py"):
        assert not re.search(r"^\s*(from|import)\s+hookflat_plugins", path.read_text(), re.M), path


def test_every_plugin_says_in_one_sentence_what_it_does_and_describes_its_options():
    from hookflat.recipe.options import describe

    for source in Catalogue():
        cls = source.load()
        assert cls.__doc__, source.name
        assert not cls.__doc__.startswith(f"{cls.__name__}("), source.name
        for option in describe(cls):
            assert option.description, f"{source.name}.{option.name} has no description"


def test_kinds_follow_from_hooks():
    kinds = {s.name: kind_of(s.load()) for s in Catalogue()}
    assert kinds["trades"] == "loss"
    assert kinds["pgd"] == "attack"
    assert kinds["awp"] == "weight perturbation"
    assert kinds["label_noise"] == "regularizer"
    assert kinds["early_stopping"] == "model selection"
    assert kinds["average_flatness"] == "measure"


def plugin(**methods):
    return dataclass(eq=False)(type("Made", (), methods))


def test_classes_that_are_no_plugins_are_refused_with_the_remedy():
    def marked():
        return {"after_step": hookimpl(lambda self: None)}

    cases = {
        r"not a dataclass: mark its class with @dataclass\(eq=False\)": type("Made", (), marked()),
        "compares by value": dataclass(type("Made", (), marked())),
        "method 'after_step' without @hookimpl": plugin(after_step=lambda self: None),
        "implements no hook": plugin(),
        "has 'state_dict' alone: a run that goes on needs both": plugin(**marked(), state_dict=lambda self: {}),
        "has 'load_state_dict' alone": plugin(**marked(), load_state_dict=lambda self, state: None),
        "answers 'after_step' beside 'measure'": plugin(**marked(), measure=hookimpl(lambda self: {})),
        **{
            f"has an option '{key}', which recipes have of every plugin": plugin(
                **marked(), **{key: False, "__annotations__": {key: bool}}
            )
            for key in ("name", "enabled", "if_used")
        },
    }
    for message, cls in cases.items():
        with pytest.raises(UserError, match=message):
            Catalogue([cls]).find("made").load()


def test_a_plugin_of_one_slot_answers_no_other_slot_s_hook():
    """It would be asked before the plugin that the recipe names, which nobody would hear of."""
    marked = hookimpl(lambda self: None)
    both = plugin(loss=marked, craft=hookimpl(lambda self: None))
    with pytest.raises(UserError, match=r"plugin 'made' answers 'loss' too, which is for \[loss\] alone: wrap it"):
        load_recipe(recipe({"attack": {"name": "made"}}), catalogue=Catalogue([TinyData, TinyModel, both]))

    def around(self):
        return (yield)

    beside = plugin(craft=hookimpl(lambda self: None), loss=hookimpl(around, wrapper=True))
    load_recipe(recipe({"attack": {"name": "made"}}), catalogue=Catalogue([TinyData, TinyModel, beside]))


def test_hook_arguments_and_names_that_do_not_exist_are_refused():
    def wrong_argument(self, batsch):
        pass

    with pytest.raises(UserError, match=r"'wrong'.*batsch"):
        Hooks({"wrong": plugin(after_step=hookimpl(wrong_argument))()})
    with pytest.raises(UserError, match=r"'typo'.*after_stepp"):
        Hooks({"typo": plugin(after_stepp=hookimpl(lambda self: None), draw=hookimpl(lambda self: None))()})


def test_plugins_are_called_in_their_order_wrappers_outermost_first():
    calls = []

    def named(name):
        return plugin(after_step=hookimpl(lambda self: calls.append(name)))()

    hooks = Hooks({name: named(name) for name in "abc"})
    hooks.call.after_step(run=None)
    assert calls == ["a", "b", "c"]
    assert hooks.order() == {"after_step": ["a", "b", "c"]}


def test_two_packages_with_one_name_are_told(monkeypatch):
    from hookflat.recipe import catalogue as plugins

    source = next(iter(Catalogue()))
    catalogue = Catalogue()
    catalogue._sources["awp"].append(plugins.PluginSource("awp", "other 1.0", source.target))
    with pytest.raises(UserError, match=r"'awp' is claimed by hookflat .* and other 1.0"):
        catalogue.find("awp")


def test_names_of_classes_keep_their_capitals_together():
    for cls, name in {
        "MLPMixer": "mlp_mixer",
        "SAMv2": "samv2",
        "LocalLipschitz": "local_lipschitz",
        "At2": "at2",
    }.items():
        made = dataclass(eq=False)(type(cls, (), {"after_step": hookimpl(lambda self: None)}))
        assert [source.name for source in Catalogue([made]) if source.target is made] == [name]


def test_files_bring_plugins_by_their_class_names(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from hookflat import hookimpl\n"
        "from hookflat_plugins.awp import *\n"
        "@dataclass(eq=False)\n"
        "class MyTwoHooks:\n"
        "    x: int = 1\n"
        "    @hookimpl\n"
        "    def after_step(self): pass\n"
        "    @hookimpl\n"
        "    def epoch_end(self): pass\n"
        "@dataclass(eq=False)\n"
        "class Misspelt:\n"
        "    @hookimpl\n"
        "    def los(self): pass\n"
    )
    source = Catalogue([file]).find("my_two_hooks")
    assert list(hooks_of(source.load())) == ["after_step", "epoch_end"]
    assert source.package == str(file)
    with pytest.raises(UserError, match=r"'misspelt' marks 'los', which is no hook .did you mean 'loss'"):
        Catalogue([file]).find("misspelt").load()
    with pytest.raises(UserError, match="no such file"):
        Catalogue([tmp_path / "none.py"])
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="no class with a method marked @hookimpl"):
        Catalogue([file])
    file.write_text("import nothing_like_this\n")
    with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
        Catalogue([file])


def test_files_of_one_name_are_two_modules(tmp_path):
    for name in ("a", "b"):
        file = tmp_path / name / "mine.py"
        file.parent.mkdir()
        file.write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Literal\n"
            f"from hookflat import hookimpl\n{name.upper()} = Literal['{name}']\n@dataclass(eq=False)\n"
            f"class Mine{name}:\n    my: {name.upper()} = '{name}'\n    @hookimpl\n    def after_step(self): pass\n"
        )
    catalogue = Catalogue([tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"])
    for name in ("a", "b"):
        assert [option.default for option in describe(catalogue.find(f"mine{name}").load())] == [repr(name)]


def test_wrappers_may_change_what_is_built():
    @dataclass(eq=False)
    class Halves:
        @hookimpl(wrapper=True)
        def build_data(self):
            data = yield
            return data.hold_out(6, "train")

    with tiny_run({"plugins": {"halves": {}}}, [Halves]) as run:
        assert len(run.data.train) == 18


# --- plugins of others ------------------------------------------------------------------------------------------------

ENDS = [
    "raise SystemExit('bye')",
    "import sys; sys.exit(0)",
    "raise KeyboardInterrupt",
    "raise BaseException('oh')",
    "raise ZeroDivisionError('oh')",
    "raise StopIteration",  # which every `with` made of a generator takes for its own
]
HOOK = "    @hookimpl\n    def after_step(self): {0}\n"


def mine(folder, *, top="", fields="", hook="pass", after=""):
    file = folder / "mine.py"
    file.write_text(
        f"from __future__ import annotations\nfrom dataclasses import dataclass\nfrom hookflat import hookimpl\n{top}\n"
        f"@dataclass(eq=False)\nclass Mine:\n{fields}{HOOK.format(hook)}{after}\n"
    )
    return file


@pytest.mark.parametrize("end", ENDS)
def test_a_plugin_that_ends_the_program_is_named_wherever_it_does(end, tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    with pytest.raises(UserError, match=r"mine.py: cannot be imported: \w+"):
        Catalogue([mine(tmp_path, top=end)])
    used = {"plugins": {"mine": {}}}
    with pytest.raises(UserError, match=r"plugins.mine: Mine cannot be made: \w+"):
        run_recipe(used, tmp_path / "a", [mine(tmp_path, after=f"    def __post_init__(self): {end}")])
    with pytest.raises(TrainingFailed, match=r"plugin 'mine' failed in hook 'after_step': \w+.* \(.*mine.py:\d+"):
        run_recipe(used, tmp_path / "b", [mine(tmp_path, hook=end)])


def test_a_key_that_is_pressed_is_nobodys_fault(tmp_path):
    from hookflat.testing import run_recipe

    source = (
        "    def wait(self):\n        until = time.monotonic() + 30\n        while time.monotonic() < until: pass\n"
    )
    file = mine(tmp_path, top="import _thread, time", hook="_thread.interrupt_main(); self.wait()", after=source)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("    x: Nothing = None\n", r"the types of its options cannot be resolved: NameError: .*Nothing"),
        (
            "    x: Path = None\n    y: object.__class__.mro = 1\n",
            r"its option 'y' is of a type that no recipe can write",
        ),
        ("    x: torch.Tensor = None\n", r"its option 'x' is of a type that no recipe can write, Tensor"),
        ("    x: Path = Path('a')\n", r"options hold numbers, text, .* not PosixPath\('a'\)"),
        ("    x: float = float('nan')\n", r"options hold finite numbers only"),
    ],
)
def test_an_option_of_a_strange_type_is_told_in_a_line(fields, told, tmp_path):
    from hookflat.testing import run_recipe

    file = mine(tmp_path, top="from pathlib import Path\nimport torch", fields=fields)
    with pytest.raises(UserError, match=rf"plugins.mine: .*{told}") as caught:
        run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file])
    assert len(str(caught.value).splitlines()) == 1


def test_a_complete_run_keeps_the_record_of_what_made_it(tmp_path):
    from hookflat.testing import run_recipe

    file = mine(tmp_path)
    folder = run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file]).folder
    record = (folder / "environment.json").read_text()
    assert '"hookflat":' in record
    file.write_text(file.read_text() + "\n# another formula\n")
    run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file])
    assert (folder / "environment.json").read_text() == record


def test_a_plugin_s_other_methods_are_named_too(tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    methods = "    def state_dict(self): raise ValueError('oh')\n    def load_state_dict(self, state): pass"
    file = mine(tmp_path, after=methods)
    with pytest.raises(TrainingFailed, match=r"plugin 'mine' failed in method 'state_dict': ValueError: oh"):
        run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file])


WRONG = {
    "build_data": ("[1]", "a hookflat.Data"),
    "build_model": ("'net'", "a torch.nn.Module"),
    "build_optimizer": ("3", "a torch.optim.Optimizer"),
    "build_schedule": ("None", "a torch scheduler"),
    "attack_objective": ("3", "a function of network and images"),
    "gradients": ("0.5", "the loss, a tensor"),
    "eval_model": ("{}", "a torch.nn.Module"),
    "draw": ("{'a': 3}", "figures by name, a dict"),
}


def test_a_schedule_whose_steps_want_a_value_is_refused(tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    @dataclass(eq=False)
    class Plateau:
        @hookimpl
        def build_schedule(self, optimizer):
            return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    with pytest.raises(
        TrainingFailed, match=r"'plateau'. should return a torch scheduler, .* a step that takes no value"
    ):
        run_recipe({"schedule": {"name": "plateau"}}, tmp_path / "run", [Plateau])


@pytest.mark.parametrize("hook", WRONG)
def test_an_answer_of_a_wrong_type_is_told_with_its_plugin(hook, tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    answer, meant = WRONG[hook]
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom hookflat import hookimpl\n\n@dataclass(eq=False)\nclass Mine:\n"
        f"    @hookimpl\n    def {hook}(self):\n        return {answer}\n"
    )
    slot = next((slot for slot, answered in SLOTS.items() if answered == hook), None)
    tables = {slot: {"name": "mine"}} if slot else {"plugins": {"mine": {}}}
    told = rf"hook {hook!r} \(plugins: 'mine'\) should return {meant}.*, not {re.escape(answer)}$"
    with pytest.raises(TrainingFailed, match=told):
        run_recipe(tables | {"run": {"epochs": 1}}, tmp_path / "run", [file])


def test_a_gpu_without_memory_left_is_nobodys_fault_and_what_takes_less_is_told(tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    file = mine(tmp_path, top="import torch", hook="raise torch.OutOfMemoryError('CUDA out of memory. Tried to\\nand')")
    told = (
        r"^the GPU has no memory left \(CUDA out of memory. Tried to\).*HOOKFLAT_CUDA_GRAPHS=0.*accumulation.* goes on"
    )
    with pytest.raises(TrainingFailed, match=told):
        run_recipe({"plugins": {"mine": {}}}, tmp_path / "run", [file])


def test_a_state_that_a_plugin_does_not_take_back_is_told_with_its_name(tmp_path):
    from hookflat.training.entry import first_steps

    methods = (
        "    def state_dict(self): return {'seen': 3}\n    def load_state_dict(self, state): raise KeyError('sum')"
    )
    file = mine(tmp_path, after=methods)
    loaded = load_recipe(recipe({"plugins": {"mine": {}}}), catalogue=Catalogue([TinyData, TinyModel, file]))
    first_steps(loaded, 1, folder=tmp_path / "run")
    with pytest.raises(UserError, match=r"does not hold the state of this run: plugin 'mine', load_state_dict: KeyErr"):
        first_steps(loaded, 2, folder=tmp_path / "run")


def test_the_record_has_the_versions_of_the_packages_whose_plugins_were_used(tmp_path, monkeypatch):
    from hookflat.recipe import catalogue
    from hookflat.training.entry import first_steps

    mine(tmp_path).rename(tmp_path / "strangers.py")
    info = tmp_path / "strangers_dist-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers-dist\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[hookflat]\nmine = strangers:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue._installed.cache_clear()
    try:
        for name, versions in (("used", {"strangers-dist": "3.1"}), ("unused", {})):
            tables = {"plugins": {"mine": {}}} if name == "used" else {}
            loaded = load_recipe(recipe(tables), catalogue=Catalogue([TinyData, TinyModel]))
            first_steps(loaded, 1, folder=tmp_path / name)
            known = json.loads((tmp_path / name / "environment.json").read_text())["packages"]
            assert known.items() >= versions.items()
            assert ("strangers-dist" in known) == (name == "used")
    finally:
        monkeypatch.undo()
        catalogue._installed.cache_clear()


BROKEN = {
    "exits": "gone = broken_exits:Gone",
    "no module": "gone = no_such_module:Gone",
    "no value": "gone =",
    "no name": "= a:B",
    "no equals sign": "gone",
    "nonsense": "gone = ::: ] [",
    "strange recipes": "gone = a:B\n[hookflat.recipes]\nx = ..\ny = \nz = a b c",
}


@pytest.mark.parametrize("how", [*BROKEN, "no text", "no metadata"])
def test_one_bad_entry_point_breaks_nothing_but_its_users(how, tmp_path, monkeypatch):
    from hookflat.recipe import catalogue, shipped

    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (tmp_path / "broken_exits.py").write_text("raise SystemExit\n")
    if how != "no metadata":
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    text = f"[hookflat]\n{BROKEN.get(how, BROKEN['exits'])}\n".encode()
    (info / "entry_points.txt").write_bytes(b"\xff\xfe" + text if how == "no text" else text)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (catalogue._installed, catalogue.catalogue_of, shipped.recipe_folders):
        cached.cache_clear()
    try:
        fresh = Catalogue()
        assert fresh.find("awp").load()
        assert shipped.find_recipe("trades")
        if how in ("exits", "no module", "no metadata"):
            with pytest.raises(UserError, match=r"plugin 'gone' of .* cannot be imported: (SystemExit|ModuleNotFound)"):
                fresh.find("gone").load()
    finally:
        monkeypatch.undo()
        for cached in (catalogue._installed, catalogue.catalogue_of, shipped.recipe_folders):
            cached.cache_clear()


def test_a_plugin_class_that_cannot_be_looked_at(tmp_path):
    top = "class Bad:\n    def __get__(self, *_): raise RuntimeError('oh')\n"
    file = mine(tmp_path, top=top, after="    bad = Bad()")
    with pytest.raises(UserError, match="plugin 'mine' cannot be looked at: RuntimeError: oh"):
        Catalogue([file]).find("mine").load()


@pytest.mark.parametrize("culprit", ["one", "other", "loss"])
def test_a_loss_that_is_not_finite_blames_the_plugin_that_gave_it(culprit, tmp_path):
    from hookflat import TrainingFailed
    from hookflat.testing import run_recipe

    def extra(name):
        def extra_loss(self):
            return float("nan" if name == culprit else 0.5)

        return type(name.title(), (), {"extra_loss": hookimpl(extra_loss), "__module__": __name__})

    def loss(self, run, batch, x_adv):
        return run.model(x_adv).square().mean() * float("nan" if culprit == "loss" else 1)

    classes = [dataclass(eq=False)(cls) for cls in (extra("one"), extra("other"))]
    classes.append(dataclass(eq=False)(type("MyLoss", (), {"loss": hookimpl(loss), "__module__": __name__})))
    tables = {"plugins": {"one": {}, "other": {}}, "loss": {"name": "my_loss"}}
    hook, name = ("loss", "my_loss") if culprit == "loss" else ("extra_loss", culprit)
    with pytest.raises(TrainingFailed, match=rf"the result of hook '{hook}' \(plugin '{name}'\) in step 1"):
        run_recipe(tables, tmp_path / "run", classes)
