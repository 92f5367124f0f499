"""A pass at other widths held against its reference: whether sizes follow as the reference foretells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .record import COPY, Clash, Operator, Shape, Side, Sides
from .sizes import SLACK, Number

if TYPE_CHECKING:
    from .tracer import Tracer


def align(t: Tracer, name: str) -> None:
    """Step over copies that only the reference made: whether a reshape copies depends on the widths."""
    assert t.reference is not None
    while name != COPY and len(t.ops) < len(t.reference.ops):
        expected = t.reference.ops[len(t.ops)]
        if expected.name != COPY:
            break
        t.ops.append(expected)


def is_foretold(t: Tracer, name: str, number: int) -> bool:
    """Whether the reference has an operator of that name there; a view is one whether it copied first or not."""
    assert t.reference is not None
    if number >= len(t.reference.ops):
        return False
    expected = t.reference.ops[number].name
    return expected == name or {expected, name} <= {"view", "_unsafe_view"}


def compare(t: Tracer, op: Operator) -> None:
    """Hold the last operator against the reference's; one that has another reading is kept in `misread`.

    Raises Clash where another operator runs, or where a size is not what the reference foretells.
    """
    assert t.reference is not None
    number = len(t.ops) - 1
    if not is_foretold(t, op.name, number):
        raise Clash(number, f"other operators run at other widths (at {t.where()})")
    before = t.reference.ops[number]
    wrong = _first_wrong(t, before.out_sides, op.out_shapes)
    if wrong is None or _first_wrong(t, before.in_sides, op.in_shapes) is not None:
        return
    if t.reference.readings.get(number, 0) < before.alternatives:
        t.misread.append(number)
    else:
        raise Clash(number, f"a size is {wrong[1]} where {wrong[0]} would follow, in {op.name} at {t.where()}")


def _first_wrong(t: Tracer, sides: Sequence[Sides], shapes: Sequence[Shape]) -> tuple[Number, int] | None:
    """The first size that differs from what is foretold: (foretold, actual)."""
    assert t.reference is not None
    assert t.values is not None
    if len(sides) != len(shapes):
        return len(sides), len(shapes)
    for own, shape in zip(sides, shapes, strict=True):
        for side, actual in zip(own, shape, strict=True):
            expected = _foretell(t.reference, side, t.values)
            if expected is not None and expected != actual:
                return expected, actual
    return None


def _foretell(reference: Tracer, side: int | Side, values: list[int]) -> Number | None:
    """A side's size at these symbol values; None where an amount of padding leaves it open."""
    if not isinstance(side, Side):
        return side
    form = reference.sizes.reduce(side.form)
    if any(reference.sizes.symbols[s].kind == SLACK for s in form.terms):
        return None
    return form.at(values)
