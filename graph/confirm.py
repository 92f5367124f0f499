"""From one forward pass to a rule: sizes as read once are confirmed, or frozen, by a second pass at other widths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from math import lcm

from torch import nn

from ..errors import UntraceableModel
from . import elementwise_rules, layer_rules, part_rules, view_rules  # noqa: F401  (they register their answers)
from .record import Clash, Operator, Shape, Side
from .sizes import WIDTH, Linear, Number, Sizes
from .tracer import Tracer


def follow(
    model: nn.Module, inputs: Sequence[Shape], readings: Mapping[int, int] | None = None,
    whole_groups: Collection[str] = (),
) -> Tracer:  # fmt: skip
    """Trace the evaluation pass, and the training pass too where parameters are only used there."""
    tracer = Tracer(model, readings=readings, whole_groups=whole_groups)
    run_passes(tracer, inputs)
    return tracer


def ambiguous_views(model: nn.Module, inputs: Sequence[Shape], first: Tracer) -> dict[int, int]:
    """How views that split a side in equal numbers are to be read, found before a wrong reading freezes anything."""
    doubtful = {i for i, op in enumerate(first.ops) if op.kind == "view" and op.alternatives and _has_equal_sides(op)}
    readings = dict(first.readings)
    while doubtful:
        lenient = Tracer(model, readings=readings, sizes=Sizes(lenient=True), whole_groups=first.whole_groups)
        lenient.run(inputs)
        values = values_at(lenient, _other_widths(lenient, free_widths(lenient)))
        second = Tracer(model, shapes_at(lenient, values), reference=lenient, values=values)
        with suppress(Clash):  # of what will be frozen; only what was misread on the way matters here
            second.run(inputs)
        misread = doubtful & set(second.misread)
        if not misread:
            break
        for number in misread:
            readings[number] = readings.get(number, 0) + 1
    return readings


def _has_equal_sides(op: Operator) -> bool:
    """Whether a view leaves open which of two sides of one size carries the channels."""
    sizes = [n for n in op.out_shapes[0] if n > 1]
    varying = any(isinstance(side, Side) for side in op.in_sides[0])
    return varying and len(set(sizes)) < len(sizes) and len(op.out_shapes[0]) > len(op.in_shapes[0])


def run_passes(tracer: Tracer, inputs: Sequence[Shape]) -> None:
    """Run a tracer; sides of parameters that no pass reads are frozen."""
    tracer.run(inputs)
    tracer.eval_ops = len(tracer.ops)
    if tracer.untouched & tracer.trainable:
        _run_training(tracer, inputs)
    for name in tracer.untouched:
        for d, side in enumerate(tracer.parameter_sides[name]):
            assert isinstance(side, Side)
            tracer.sizes.freeze(side.form, f"side {d} of {name} is not read in a forward pass")


def _run_training(tracer: Tracer, inputs: Sequence[Shape]) -> None:
    """Follow the training pass; one that fails where the evaluation pass did not is kept as the reason to freeze."""
    if tracer.reference is not None and tracer.reference.training_fails:
        return
    try:
        tracer.run([(max(2, shape[0]), *shape[1:]) for shape in inputs], training=True)
    except UntraceableModel as error:
        tracer.training_fails = True
        for name in sorted(tracer.untouched):
            tracer.freeze_sides(
                tracer.parameter_sides[name], f"read in training only, which cannot be followed: {error}"
            )
        for op in tracer.ops[tracer.eval_ops :]:
            for sides in (*op.in_sides, *op.out_sides):
                tracer.freeze_sides(sides, f"read in training, which cannot be followed: {error}")


def values_at(tracer: Tracer, widths: dict[int, int]) -> list[int]:
    """Every symbol's value when the free width symbols take these values."""
    values: list[Number] = [s.value for s in tracer.sizes.symbols]
    for symbol, width in widths.items():
        values[symbol] = width
    base = list(values)
    for symbol in tracer.sizes.solved:
        values[symbol] = tracer.sizes.reduce(Linear({symbol: 1})).at(base)  # type: ignore[arg-type]
    return values  # type: ignore[return-value]


def shapes_at(tracer: Tracer, values: list[int]) -> dict[str, Shape]:
    """Every parameter's shape at these symbol values."""
    return {
        name: tuple(int(s.form.at(values)) if isinstance(s, Side) else s for s in sides)
        for name, sides in tracer.parameter_sides.items()
    }


def free_widths(tracer: Tracer) -> list[int]:
    """Width symbols that nothing has solved, in the order in which layers make them."""
    symbols = tracer.sizes.symbols
    used = {s for sides in tracer.parameter_sides.values() for side in sides if isinstance(side, Side)
            for s in tracer.sizes.reduce(side.form).terms}  # fmt: skip
    free = [s for s in used if symbols[s].kind == WIDTH]
    return sorted(free, key=lambda s: symbols[s].order)


def confirmed(model: nn.Module, inputs: Sequence[Shape], first: Tracer) -> Tracer:
    """The trace whose size rules hold at other widths too; what does not follow is frozen, and why is kept."""
    tracer, readings = first, ambiguous_views(model, inputs, first)
    if readings != first.readings:
        tracer = follow(model, inputs, readings, first.whole_groups)
    frozen: dict[int, str] = {}
    pads: set[int] = set()
    while widths := free_widths(tracer):
        values = values_at(tracer, _other_widths(tracer, widths))
        second = Tracer(model, shapes_at(tracer, values), reference=tracer, values=values, readings=readings)
        clash = None
        try:
            run_passes(second, inputs)
        except Clash as error:
            clash = error
        if second.misread:
            for number in second.misread:
                readings[number] = readings.get(number, 0) + 1
            tracer = follow(model, inputs, readings, first.whole_groups)
            for symbol, why in frozen.items():
                tracer.sizes.freeze(Linear({symbol: 1}), why)
            pads.clear()
        elif clash is None:
            return tracer
        elif not _pads_by_a_constant(tracer, clash, pads):
            _freeze_after(tracer, clash, frozen)
    return tracer


def _pads_by_a_constant(tracer: Tracer, clash: Clash, seen: set[int]) -> bool:
    """Whether the clash is channels padded by a fixed number, which from now on is how the sizes hang together."""
    op = tracer.ops[clash.number] if clash.number < len(tracer.ops) else None
    if op is None or op.name != "constant_pad_nd" or clash.number in seen:
        return False
    seen.add(clash.number)
    for before, after in zip(op.in_sides[0], op.out_sides[0], strict=True):
        if isinstance(before, Side) and isinstance(after, Side) and before is not after:
            amount = tracer.sizes.value(after.form) - tracer.sizes.value(before.form)
            tracer.sizes.equate(after.form, before.form + Linear({}, amount), f"padding of a fixed size: {clash}")
    return True


def _freeze_after(tracer: Tracer, clash: Clash, frozen: dict[int, str]) -> None:
    """Freeze what the clashing operator reads; if that is nothing, what the ones before it do; at last everything."""
    for number in (clash.number, clash.number - 1):
        if 0 <= number < len(tracer.ops):
            op = tracer.ops[number]
            forms = [side.form for sides in (*op.in_sides, *op.out_sides) for side in sides if isinstance(side, Side)]
            symbols = {s for form in forms for s in tracer.sizes.reduce(form).terms}
            if symbols:
                break
    else:
        symbols = set(free_widths(tracer))
    for symbol in symbols:
        tracer.sizes.freeze(Linear({symbol: 1}), str(clash))
        frozen[symbol] = str(clash)


def _other_widths(tracer: Tracer, widths: list[int]) -> dict[int, int]:
    """Valid widths with a different ratio for each group where the constraints allow it."""
    symbols = tracer.sizes.symbols
    steps = steps_of(tracer, widths)
    varied = {s: 2 * symbols[s].value + steps[s] * (1 + i % 7) for i, s in enumerate(widths)}
    plain = {s: 2 * symbols[s].value for s in widths}
    return varied if broken_constraint(tracer, varied) is None else plain


def steps_of(tracer: Tracer, widths: list[int]) -> dict[int, int]:
    """What each width must be a multiple of so that every size stays whole."""
    steps = dict.fromkeys(widths, 1)
    forms = [tracer.sizes.reduce(form) for form in tracer.sizes.whole]
    forms += [tracer.sizes.reduce(s.form) for sides in tracer.parameter_sides.values() for s in sides
              if isinstance(s, Side)]  # fmt: skip
    for form in forms:
        for symbol in form.terms:
            if symbol in steps:
                single = Linear({symbol: form.terms[symbol]})
                steps[symbol] = lcm(steps[symbol], single.denominator)
    return steps


def broken_constraint(tracer: Tracer, widths: dict[int, int]) -> str | None:
    """The first constraint that these widths break, in words."""
    values = [s.value for s in tracer.sizes.symbols]
    for symbol, width in widths.items():
        values[symbol] = width
    for form, why in tracer.sizes.whole.items():
        value = tracer.sizes.reduce(form).at(values)
        if value < 1 or not isinstance(value, int):
            return f"{why} (a size would be {value})"
    for name, sides in tracer.parameter_sides.items():
        for d, side in enumerate(sides):
            assert isinstance(side, Side)
            value = tracer.sizes.reduce(side.form).at(values)
            if not isinstance(value, int) or (value < 1 and tracer.sizes.reduce(side.form).terms):
                return f"side {d} of {name} would be {value}"
    return None
