"""Options as a plugin's source declares them are those of its class, or are not told at all."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from typing import Any, Literal, get_type_hints

import pytest

from hookflat import Share
from hookflat.recipe.catalogue import Catalogue
from hookflat.recipe.declared import declared_options
from hookflat.recipe.options import InvalidOptions, check_declared

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


WITHOUT_TORCH = """
import json, sys
import hookflat.recipe.loading
from hookflat.recipe.catalogue import Catalogue
declared = {plugin.name: {name: repr(of) for name, of in plugin.declared().items()} for plugin in Catalogue()}
assert "torch" not in sys.modules and not [name for name in sys.modules if name.startswith("hookflat_plugins")]
print(json.dumps(declared))
"""


@pytest.fixture(scope="module")
def declared_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(without_addresses(done.stdout))


def without_addresses(text):
    return re.sub("0x[0-9a-f]+", "0x", text)


@pytest.mark.parametrize("plugin", Catalogue(), ids=lambda plugin: plugin.name)
def test_every_plugin_that_ships_declares_its_options_and_their_types(plugin, declared_without_torch):
    cls = plugin.load()
    types = get_type_hints(cls, include_extras=True)
    expected = {field.name: without_addresses(repr(types[field.name])) for field in fields(cls) if field.init}
    assert declared_without_torch[plugin.name] == expected


def test_inherited_options_are_followed_through_modules_and_nothing_is_imported(package):
    package(
        base=PLAIN.replace("Mine", "Base"),
        between="from .base import Base as Renamed",
        mine="from declared_here.between import Renamed\n"
        + PLAIN.replace("Mine:", "Mine(Renamed):").replace("b: float", "c: str"),
    )
    assert declared_options("declared_here.mine", "Mine") == {"a": int, "b": float, "c": str}
    assert not [name for name in sys.modules if name.startswith("declared_here")]


def test_types_are_followed_to_where_they_are_named_and_are_any_where_only_an_import_tells(package):
    package(
        choices="from typing import Literal\nKind = Literal['x', 'y']\nif True:\n    Hidden = int\nLoop = Loop\n",
        mine="import elsewhere\nfrom typing import Annotated\nfrom pydantic import Field\nfrom hookflat import Share\n"
        "from .choices import Hidden, Kind as Called, Loop\nSeveral = list[Called]\n@dataclass(eq=False)\nclass Mine:\n"
        "    a: Several | None = None\n    b: Share = 0\n    c: Hidden = 1\n    d: elsewhere.Type = 2\n"
        "    e: Loop = 3\n    f: 'int' = 4\n    g: Annotated[int, Field(ge=1)] = 5\n",
    )
    declared = declared_options("declared_here.mine", "Mine")
    *known, described = [declared.pop(name) for name in "abg"]
    assert known == [list[Literal["x", "y"]] | None, Share]
    assert described.__metadata__[0].metadata[0].ge == 1
    assert declared == dict.fromkeys("cdef", Any)


def test_a_wrong_value_is_told_by_its_declared_type_and_a_strange_type_refuses_none():
    for types, table, faults in (
        ({"a": int, "b": Share}, {"a": 1.5, "b": 2}, [("a",), ("b",)]),
        ({"a": int}, {"a": 1, "c": 0}, [("c",)]),
        ({"a": Any}, {"a": [object]}, []),
        ({"a": int, "b": object()}, {"a": "x", "c": 0}, [("c",)]),
    ):
        collected = []
        try:
            check_declared(types, table)
        except InvalidOptions as error:
            collected = [path for path, _ in error.faults]
        assert collected == faults


@pytest.mark.parametrize("text", UNKNOWN.values(), ids=UNKNOWN)
def test_what_the_source_does_not_say_is_left_to_the_class(text, package):
    if text is not None:
        package(mine=text)
    assert declared_options("declared_here.mine", "Mine") is None
