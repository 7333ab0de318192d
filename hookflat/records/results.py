"""Results with a type: the file eval.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hookflat.errors import UserError
from hookflat.recipe.tables import as_json
from hookflat.records.quantities import Quantity
from hookflat.records.texts import DamagedError, read_json

SCHEMA = 1
"""Of the file. A later version may add fields, which earlier ones keep; what changes its meaning counts up."""


class _Kept(BaseModel):
    """Fields that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")


class StageProtocol(_Kept):
    """One `[eval.STAGE]`: how many examples of each split, which (`take`), and every measure with its options."""

    examples: dict[str, int]
    take: str = "first"
    measures: dict[str, dict[str, Any]]


class Protocol(_Kept):
    """How the numbers were measured."""

    eps: float
    step_size: float
    seed: int
    stages: dict[str, StageProtocol]
    batch_size: int | None = None
    precision: str = "fp32"
    norm: str = "Linf"

    @property
    def threat(self) -> str:
        """In words: "L2, eps 0.5"."""
        return f"{'L-infinity' if self.norm == 'Linf' else self.norm}, eps {self.eps:.4g}"


def _absent(value: Any) -> Any:
    return math.nan if value is None else value


Value = Annotated[float, BeforeValidator(_absent)]
"""A number; one that is not finite is null in the file, and NaN here."""


class NetworkResults(_Kept):
    """Of one network: every number by name on `test` and `train`, and the `gap`, test minus train.

    `epoch`: after which it was taken. `weights`: their fingerprint. `seconds`: wall time of each "split/measure".
    """

    epoch: int | None = None
    weights: str | None = None
    rescaled: float | None = None
    test: dict[str, Value] = Field(default_factory=dict)
    train: dict[str, Value] = Field(default_factory=dict)
    gap: dict[str, Value] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)


def first_fault(error: ValidationError) -> str:
    """Of what was read from a file: where, and what."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


class Results(_Kept):
    """What a training, or `hookflat eval`, measured.

    `recipe`: its name. `model`: what `hookflat eval` was given, "" after a training. `seconds`: wall time of the
    training. `setting`: the fingerprint of architecture and data, of `hookflat eval`. `models`: "last", "best" (early
    stopped) or an epoch to the numbers of that network. `numbers`: what each number is.
    """

    recipe: str
    protocol: Protocol
    models: dict[str, NetworkResults] = Field(default_factory=dict)
    model: str = ""
    epochs: int | None = None
    processes: int = 1
    seconds: dict[str, float] = Field(default_factory=dict)
    classes: int | None = None
    setting: str | None = None
    numbers: dict[str, Quantity] = Field(default_factory=dict)
    version: int = Field(SCHEMA, alias="schema")

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    @classmethod
    def read(cls, file: Path) -> Results:
        """Raises UserError for a file that cannot be read, and one that hookflat did not write."""
        try:
            results = cls.model_validate(read_json(file))
        except ValidationError as error:
            raise DamagedError(f"{file} is not what hookflat writes: {first_fault(error)}") from None
        if results.version > SCHEMA:
            raise UserError(f"{file} is of a later hookflat (schema {results.version}, this one knows {SCHEMA})")
        return results

    def to_json(self) -> str:
        """The content of the file, without what is not known."""
        return as_json(self.model_dump(exclude_none=True, by_alias=True), indent=2)
