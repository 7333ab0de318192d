"""Options of plugins: how recipe values become dataclass fields, and what is said when they do not."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from hookflat.errors import UserError, thrown
from hookflat.recipe.nearest import nearest
from hookflat.terminal import shortened


def _number(value: Any) -> Any:
    """Numbers, and fractions written as strings: "8/255"."""
    if isinstance(value, str):
        above, slash, below = value.partition("/")
        try:
            return float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f'{shortened(value)} is neither a number nor a fraction like "8/255"') from None
    return value


LARGEST = 3.4e38
"""What tensors of float32 hold."""


def _within_float32(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"should be a number of at most {LARGEST:g}, as float32 holds, not {value:g}")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False), AfterValidator(_within_float32)]
"""A float option that may also be written as a fraction, `"8/255"`."""

Share = Annotated[Number, Field(ge=0, le=1)]
"""A number in [0, 1], for example a share of the training."""

Decay = Annotated[Number, Field(ge=0, lt=1)]
"""A number in [0, 1), for example of a running mean."""

Period = Annotated[Number, Field(gt=0)]
"""How often: whole numbers count epochs, numbers below 1 (`"1/16"`) are shares of the training."""


Radii = Annotated[
    list[Annotated[Number, Field(ge=0)]] | Annotated[Number, Field(ge=0)],
    Field(description="radius, relative to the L2 norm of each layer, or a list of radii"),
]
"""One or several radii of a neighbourhood of the weights."""

Losses = Annotated[list[Literal["clean", "robust"]], Field(description="which losses", min_length=1)]
"""Of which loss something is measured."""


def period_in_epochs(period: float, epochs: int) -> int:
    """A `Period` in epochs, at least 1."""
    return max(1, round(period * epochs if period < 1 else period))


MOST_FAULTS = 20
"""That are told at once."""


Fault = tuple[tuple[str, ...], str]
"""A path inside a table, and what is wrong there."""


class InvalidOptions(Exception):  # noqa: N818
    """What is wrong with a table."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{'.'.join(path)}: {message}" for path, message in faults))
        self.faults = faults


def build(cls: Any, table: dict[str, Any]) -> Any:
    """An instance of the dataclass `cls` from a recipe table: every key known, every value of its type and range.

    Raises InvalidOptions with all faults at once (of many, the first), also for a class that cannot be built.
    """
    try:
        model = _model(cls)
    except Exception as error:
        raise InvalidOptions([((), f"{cls.__name__}: {_strange_type(cls, error)}")]) from error
    try:
        values = _validated(model, table)
        made = cls(**{name: getattr(values, name) for name in model.model_fields})
        as_table(made)
        return made
    except InvalidOptions:
        raise
    except ValueError as error:
        raise InvalidOptions([((), str(error))]) from None
    except BaseException as error:
        if not thrown(error):
            raise
        raise InvalidOptions([((), f"{cls.__name__} cannot be made: {type(error).__name__}: {error}")]) from error


def check_declared(types: Mapping[str, Any], table: dict[str, Any]) -> None:
    """Raises InvalidOptions for a recipe table that has other options than these, or values not of their types.

    A class may refuse more (`build`).
    """
    try:
        model = _shape("Declared", {name: (of, None) for name, of in types.items()})
    except Exception:  # of a type that no recipe can write
        model = _shape("Declared", dict.fromkeys(types, (Any, None)))
    _validated(model, table)


def _validated(model: type[BaseModel], table: dict[str, Any]) -> BaseModel:
    try:
        return model.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        names = list(model.model_fields)
        faults = [_explain(names, table, dict(e)) for e in error.errors(include_url=False)[:MOST_FAULTS]]
        raise InvalidOptions(_innermost(faults)) from None


def _innermost(faults: list[Fault]) -> list[Fault]:
    """Without those that say of a whole list what another says of an item of it: it was no number, for example."""
    paths = [path for path, _ in faults]
    return [(path, message) for path, message in faults if not any(p[: len(path)] == path != p for p in paths)]


def _strange_type(cls: Any, error: Exception) -> str:
    """Which option of a plugin is of a type that no recipe can write."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as unresolved:
        return f"the types of its options cannot be resolved: {type(unresolved).__name__}: {unresolved}"
    for field in (field for field in fields(cls) if field.init):
        try:
            create_model("One", value=(hints[field.name], ...))
        except Exception:
            return f"its option {field.name!r} is of a type that no recipe can write, {_type(hints[field.name])}"
    return f"its options cannot be read: {type(error).__name__}: {error}"


@cache
def _model(cls: Any) -> type[BaseModel]:
    """The options of a dataclass as pydantic checks them; making one takes longer than checking many tables."""
    hints = get_type_hints(cls, include_extras=True)
    return _shape(cls.__name__, {f.name: (hints[f.name], _default(f)) for f in fields(cls) if f.init})


def _shape(name: str, options: dict[str, Any]) -> type[BaseModel]:
    """Options, each with its type and default, and no others."""
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **options)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory)
    return ... if field.default is MISSING else field.default


def _explain(names: list[str], table: dict[str, Any], error: dict[str, Any]) -> Fault:
    path = _path(error["loc"], table)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return path, f"unknown option{nearest(path[-1], names)}"
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return path, "required, but not set"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = error["msg"].startswith("Input should be ")
    return path, f"should be {message}, not {shortened(error['input'])}" if expected else message


def _path(loc: tuple[int | str, ...], table: dict[str, Any]) -> tuple[str, ...]:
    """Where that is in a table, without pydantic's names for the alternatives of a union."""
    value, path = table.get(str(loc[0])), loc[:1]
    for part in loc[1:]:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list | tuple) and isinstance(part, int)):
            value, path = value[part], (*path, part)
    return tuple(map(str, path))


@dataclass(frozen=True)
class Option:
    """One option as `hookflat plugins NAME` shows it."""

    name: str
    type: str
    default: str
    bounds: str
    description: str


def describe(cls: Any) -> list[Option]:
    """The options of a plugin class, in their order. Raises UserError for a class that cannot be read."""
    try:
        hints = get_type_hints(cls, include_extras=True)
        return [_describe(f.name, hints[f.name], f) for f in fields(cls) if f.init]
    except Exception as error:
        raise UserError(f"{cls.__name__}: its options cannot be shown: {type(error).__name__}: {error}") from error


def _describe(name: str, hint: Any, field: Any) -> Option:
    infos: list[FieldInfo] = []
    while get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        infos += [e for e in extras if isinstance(e, FieldInfo)]
    description = next((i.description for i in infos if i.description), "")
    signs = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
    bounds = [
        f"{signs[type(m).__name__]} {getattr(m, type(m).__name__.lower()):g}"
        for i in infos
        for m in i.metadata
        if type(m).__name__ in signs
    ]
    if field.default_factory is not MISSING:
        default = repr(field.default_factory())
    else:
        default = "required" if field.default is MISSING else repr(field.default)
    return Option(name, _type(hint), default, ", ".join(dict.fromkeys(bounds)), description)


def _type(hint: Any) -> str:
    """A type as a reader writes it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type, arguments))
    if origin in (list, dict, tuple):
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    if origin is None:
        return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
    return str(hint).replace("typing.", "")


def plain(value: Any) -> Any:
    """A field's value as TOML and JSON can hold it (tuples as lists, no None). Raises ValueError where they cannot."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("options hold finite numbers only")
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError(
            f"options hold numbers, text, true or false, and lists and tables of them, not {shortened(value)}"
        )
    return value


def default_table(cls: Any) -> dict[str, Any]:
    """The options of a dataclass that have a default, as a recipe table."""
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls) if f.init}
    return plain({name: value for name, value in made.items() if value is not MISSING and not name.startswith("_")})


def as_table(plugin: Any) -> dict[str, Any]:
    """The options of a plugin instance as a recipe table."""
    return plain({f.name: getattr(plugin, f.name) for f in fields(plugin) if f.init and not f.name.startswith("_")})
