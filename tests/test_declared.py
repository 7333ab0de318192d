"""Options as a plugin's source declares them are those of its class, or are not told at all."""

import sys
from dataclasses import fields

import pytest

from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.declared import declared_options

PLAIN = "@dataclass(eq=False)\nclass Mine:\n    kind: ClassVar[str] = 'x'\n    a: int = 1\n    b: float = 2\n"
UNKNOWN = {
    "another decorator": f"@more\n{PLAIN}",
    "a metaclass": PLAIN.replace("Mine:", "Mine(metaclass=M):"),
    "a base from nowhere": PLAIN.replace("Mine:", "Mine(Base):"),
    "a base that is no name": PLAIN.replace("Mine:", "Mine(made()):"),
    "fields on a condition": PLAIN + "    if True:\n        c: int = 3\n",
    "not Python": "class Mine(:\n",
    "a circle": "from declared_here.mine import Mine\n",
    "no such class": "Mine = 3\n",
    "no such module": None,
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package that fails where it is imported."""

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / "declared_here" / f"{name}.py").write_text(text)

    (tmp_path / "declared_here").mkdir()
    write(__init__="raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    declared_options.__globals__["_source"].cache_clear()
    return write


@pytest.mark.parametrize("plugin", Catalogue(), ids=lambda plugin: plugin.name)
def test_every_plugin_that_ships_declares_its_options(plugin):
    assert set(plugin.declared()) == {field.name for field in fields(plugin.load()) if field.init}


def test_inherited_options_are_followed_through_modules_and_nothing_is_imported(package):
    package(
        base=PLAIN.replace("Mine", "Base"),
        between="from .base import Base as Renamed",
        mine="from declared_here.between import Renamed\n"
        + PLAIN.replace("Mine:", "Mine(Renamed):").replace("b:", "c:"),
    )
    assert declared_options("declared_here.mine", "Mine") == ["a", "b", "a", "c"]
    assert not [name for name in sys.modules if name.startswith("declared_here")]


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_what_the_source_does_not_say_is_left_to_the_class(text, package):
    if text is not None:
        package(mine=text)
    assert declared_options("declared_here.mine", "Mine") is None
