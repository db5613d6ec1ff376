"""What the devices exchange in a compiled program, read from its HLO text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""Kinds that are counted."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][a-z0-9\-]*)\((.*)$")
_TYPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_PIECE = re.compile(r'channel_id=(\d+).*\bchain_id="(\d+)"')
_CONSTANT = re.compile(r"^(\d+)\)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind in one run of the program.

    Attributes:
        count: How many are run.
        bytes: Sum of the sizes of what they put together (all-gather) or take in (all others), on one device.
    """

    count: int = 0
    bytes: int = 0


@dataclass
class _Computation:
    found: list[tuple[str, str, int]] = field(default_factory=list)
    """(kind, which, bytes): TPUs cut a collective into pieces between other work, each with the whole's type."""
    calls: list[tuple[str, int]] = field(default_factory=list)
    """(computation, times): 0 if that is not known."""
    constants: dict[str, int] = field(default_factory=dict)
    bounds: list[str] = field(default_factory=list)
    """What a loop's condition compares its counter with."""


def collectives(hlo: str) -> tuple[dict[str, Exchange], int]:
    """Count the collectives of a compiled program.

    Args:
        hlo: What `compiled.as_text()` returns: the program of one device.

    Returns:
        The kinds that occur, with loop bodies counted as often as they run; and the number of loops that hold
        collectives but do not say how often they run, whose bodies are counted once.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations, entry = _parse(hlo)
    times: dict[str, int] = defaultdict(int)
    unknown: set[str] = set()
    # Calls make a graph without cycles; a computation that two others call is passed on twice.
    pending = [(entry, 1)]
    while pending:
        name, runs = pending.pop()
        times[name] += runs
        for called, turns in computations[name].calls:
            if called in computations:
                pending.append((called, runs * max(turns, 1)))
                if turns == 0 and _holds_collectives(computations, called):
                    unknown.add(called)
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    for name, runs in times.items():
        for kind, which, size in computations[name].found:
            sizes[kind, which] = max(sizes.get((kind, which), (0, 0)), (runs, size))
    totals: dict[str, Exchange] = {}
    for (kind, _), (runs, size) in sizes.items():
        before = totals.get(kind, Exchange())
        totals[kind] = Exchange(before.count + runs, before.bytes + runs * size)
    return {kind: totals[kind] for kind in COLLECTIVES if kind in totals}, len(unknown)


def type_bytes(text: str) -> int:
    """Bytes of an HLO type such as `f32[8,128]{1,0}` or of a tuple of them."""
    total = 0
    for name, dimensions in _TYPE.findall(text):
        elements = math.prod(int(size) for size in dimensions.split(",") if size)
        total += -(-elements * _bits(name) // 8)
    return total


def _bits(name: str) -> int:
    if name in ("pred", "token"):
        return 8 if name == "pred" else 0
    digits = re.search(r"\d+", name)
    return int(digits.group()) if digits else 0


def _parse(hlo: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry = ""
    current = _Computation()
    types: dict[str, str] = {}
    loops: list[tuple[_Computation, str, str]] = []
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current, types = _Computation(), {}
            computations[header.group(2)] = current
            if header.group(1):
                entry = header.group(2)
            continue
        if not (instruction := _INSTRUCTION.match(line)):
            continue
        name, kind_of_result, operation, rest = instruction.groups()
        types[name] = kind_of_result
        if operation == "constant" and (value := _CONSTANT.match(rest)):
            current.constants[name] = int(value.group(1))
        elif operation == "compare" and "direction=LT" in rest:
            current.bounds += _operands(rest)[1:]
        elif operation == "while":
            body, condition = (re.search(rf"\b{role}=%?([\w.\-]+)", rest) for role in ("body", "condition"))
            known = _TURNS.search(rest)
            if body is not None and known:
                current.calls.append((body.group(1), int(known.group(1))))
            elif body is not None and condition is not None:
                loops.append((current, body.group(1), condition.group(1)))
            continue
        kind = operation.removesuffix("-start")
        if kind in COLLECTIVES:
            piece = _PIECE.search(rest)
            which = f"chain {piece.group(2)} of {piece.group(1)}" if piece else f"{len(computations)} {name}"
            current.found.append((kind, which, _moved(kind, operation, kind_of_result, rest, types)))
        called = _CALLED.findall(rest)
        for branches in _BRANCHES.findall(rest):
            called += [word.strip().lstrip("%") for word in branches.split(",")]
        current.calls += [(word, 1) for word in called]
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY")
    for caller, body_name, condition_name in loops:
        caller.calls.append((body_name, _turns(computations.get(condition_name))))
    return computations, entry


def _moved(kind: str, operation: str, result: str, rest: str, types: dict[str, str]) -> int:
    operands = sum(type_bytes(types.get(word, "")) for word in _operands(rest))
    if kind != "all-gather":
        return operands
    # The result of a start holds the operands too.
    return type_bytes(result) - (operands if operation.endswith("-start") else 0)


def _turns(condition: _Computation | None) -> int:
    """How often a loop runs whose condition is `counter < constant`, counting from 0 as XLA's own do; else 0."""
    if condition is None or len(condition.bounds) != 1:
        return 0
    return condition.constants.get(condition.bounds[0], 0)


def _operands(rest: str) -> list[str]:
    """Names in the parentheses that an instruction's operands stand in."""
    depth = 1
    for position, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return re.findall(r"%([\w.\-]+)", rest[:position])
    return re.findall(r"%([\w.\-]+)", rest)


def _holds_collectives(computations: dict[str, _Computation], name: str) -> bool:
    if name not in computations:
        return False
    computation = computations[name]
    return bool(computation.found) or any(_holds_collectives(computations, called) for called, _ in computation.calls)
