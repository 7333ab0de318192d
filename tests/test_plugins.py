import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from hookflat import UserError, hookimpl, hookspecs
from hookflat.recipe.catalogue import HOOKS, SLOTS, Catalogue, hooks_of, kind_of
from hookflat.testing import tiny_run
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
    }
    for message, cls in cases.items():
        with pytest.raises(UserError, match=message):
            Catalogue([cls]).find("made").load()


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


def test_wrappers_may_change_what_is_built():
    @dataclass(eq=False)
    class Halves:
        @hookimpl(wrapper=True)
        def build_data(self):
            data = yield
            return data.hold_out(6, "train")

    with tiny_run({"plugins": {"halves": {}}}, [Halves]) as run:
        assert len(run.data.train) == 18
