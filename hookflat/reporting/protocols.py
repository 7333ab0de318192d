"""How it was measured, in words."""

from __future__ import annotations

from hookflat.records.results import StageProtocol
from hookflat.reporting.gathering import Gathered


def protocol_lines(gathered: Gathered, attack: str) -> list[str]:
    """How it was measured, a line for each stage, and what was taken from other protocols."""
    protocol = gathered.main.protocol
    lines = [f"{protocol.threat}, PGD step size {protocol.step_size:.4g}; RErr by {attack}"]
    lines += [_stage(name, stage) for name, stage in protocol.stages.items()]
    for other, names in gathered.others:
        title = f"from {other.name or 'the recipes'}: {', '.join(names)}"
        stages = [_stage(name, stage) for name, stage in other.protocol.stages.items()]
        lines.append(f"{title}; {'; '.join(stages)}")
    return lines


def _stage(name: str, stage: StageProtocol) -> str:
    examples = ", ".join(f"{n} {split}" for split, n in stage.examples.items())
    measures = "; ".join(
        f"{measure}" + (f" ({options})" if (options := _options(table)) else "")
        for measure, table in stage.measures.items()
    )
    return f"{name}: {examples} examples: {measures}"


def _options(table: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in table.items() if value is not None and value is not False)
