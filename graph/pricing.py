"""Pricing: every cost as matrix products over group widths, exact to the unit for a million candidates a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import lcm, prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .costs import BYTES, Costs, EnergyTable
from .record import Operator, Product, Shape, Sides, numel
from .sizes import Linear, constant
from .tracer import Tracer

Widths = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Size = TypeVar("Size")
CHUNK = 512  # candidates priced at once: they stay in the cache, and BLAS starts no threads for so few
COUNTED = ("conv", "linear", "matrix product", "attention")


@dataclass
class Term:
    """A constant times a product of sizes, which vanishes when one of the branches it belongs to is removed."""

    product: Product
    branches: frozenset[int] = frozenset()


class Quadratics:
    """Several costs at once, each a sum of terms of degree two at most in the group widths, exact in doubles.

    Networks are chains, so few pairs of groups occur: the products of these pairs are formed once for all costs.
    """

    def __init__(self, costs: Sequence[Iterable[Term]], symbols: Sequence[int]) -> None:
        polynomials = [_polynomial(terms, symbols) for terms in costs]
        n = len(symbols)
        pairs = sorted({key for entries in polynomials for key in entries if key[1] < n})
        self.left, self.right = (np.array([pair[side] for pair in pairs], dtype=np.intp) for side in (0, 1))
        scales = [lcm(1, *(value.denominator for value in entries.values())) for entries in polynomials]
        keys = [*pairs, *((i, n) for i in range(n)), (n, n)]
        rows = [
            [float(entries.get(key, 0) * scale) for key in keys]
            for entries, scale in zip(polynomials, scales, strict=True)
        ]
        table = np.array(rows).reshape(len(scales), len(keys))
        self.coefficients, self.constants = table[:, :-1], table[:, -1:]
        self.scales = np.array(scales, dtype=float)[:, None]

    def at(self, widths: Floats) -> Floats:
        """[G, N], a group a row -> [costs, N]; sums of whole numbers below 2^53, so nothing is rounded."""
        factors = np.concatenate([widths[self.left] * widths[self.right], widths])
        return np.asarray((self.coefficients @ factors + self.constants) / self.scales)


def _polynomial(terms: Iterable[Term], symbols: Sequence[int]) -> dict[tuple[int, int], Fraction]:
    """(i, j) -> coefficient of width i times width j, i <= j; position G stands for 1."""
    column = {symbol: i for i, symbol in enumerate(symbols)}
    n = len(symbols)
    entries: dict[tuple[int, int], Fraction] = {}
    for term in terms:
        number, forms = _folded(term.product)
        if len(forms) > 2:
            raise ValueError(f"a cost of degree {len(forms)}")
        rows = [[(column[s], Fraction(c)) for s, c in f.terms.items()] + [(n, Fraction(f.constant))] for f in forms]
        rows += [[(n, Fraction(1))]] * (2 - len(rows))
        for i, a in rows[0]:
            for j, b in rows[1]:
                key = (min(i, j), max(i, j))
                entries[key] = entries.get(key, Fraction(0)) + number * a * b
    return entries


def _folded(product: Product) -> tuple[Fraction, list[Linear]]:
    """The product with constant factors multiplied out."""
    number, forms = Fraction(product[0]), []
    for form in product[1]:
        if form.terms:
            forms.append(form)
        else:
            number *= form.constant
    return number, forms


class Prices:
    """All costs of a traced model as functions of its group widths."""

    def __init__(self, tracer: Tracer, symbols: Sequence[int], branch_of_op: dict[int, set[int]],
                 branch_of_parameter: dict[str, set[int]], parameters: Sequence[str]) -> None:  # fmt: skip
        self.tracer, self.symbols = tracer, list(symbols)
        self._group_symbols = frozenset(symbols)
        self.branch_of_op = branch_of_op
        self.ops = tracer.ops[: tracer.eval_ops]
        self.parameter_terms = {
            name: Term(self._product(tracer.parameter_sides[name]), frozenset(branch_of_parameter.get(name, ())))
            for name in parameters
        }

    def reduced(self, product: Product) -> Product:
        """The product in group widths only; sizes that no group changes are what they are."""
        return product[0], tuple(self.tracer.sizes.reduce_to(form, self._group_symbols) for form in product[1])

    def _product(self, sides: Sides) -> Product:
        return self.reduced(numel(sides))

    def _branches(self, number: int) -> frozenset[int]:
        return frozenset(self.branch_of_op.get(number, ()))

    def terms(self, column: str) -> list[Term]:
        """The terms of a cost, one or more an operator or parameter."""
        if column == "params":
            return list(self.parameter_terms.values())
        terms = []
        for number, op in enumerate(self.ops):
            if not is_counted(op):
                continue
            branches = self._branches(number)
            if column == "macs":
                terms.append(Term(self.reduced(op.macs), branches))
            elif column == "activations":
                terms.append(Term(self._product(op.out_sides[0]), branches))
            elif column == "activation_access":
                terms += [Term(self._product(i.sides), branches) for i in (*op.activations, op.outs[0])]
            elif column == "weight_reads":
                terms += [self._weight(name, branches) for name in op.weights]
            else:
                raise KeyError(column)
        return terms

    def _weight(self, name: str, branches: frozenset[int]) -> Term:
        product = self.parameter_terms[name].product if name in self.parameter_terms else self._product(
            self.tracer.parameter_sides[name])  # fmt: skip
        return Term(product, branches)

    def quadratics(self, columns: Sequence[str], removed: frozenset[int] = frozenset()) -> Quadratics:
        """Costs as matrices, with the terms of removed branches left out."""
        costs = [[t for t in self.terms(column) if not t.branches & removed] for column in columns]
        return Quadratics(costs, self.symbols)

    @cached_property
    def _storage(self) -> list[tuple[int, int, Term]]:
        return storages(self.ops, self.tracer.output_numbers, lambda sides, _: Term(self._product(sides)))

    def memory_rows(self) -> tuple[Floats, Floats]:
        """Rows (linear in the widths) of bytes alive at each operator: matrix [T, G] and constants [T]."""
        n = len(self.symbols)
        column = {symbol: i for i, symbol in enumerate(self.symbols)}
        matrix, constants = np.zeros((len(self.ops) + 1, n)), np.zeros(len(self.ops) + 1)
        for born, dies, term in self._storage:
            number, forms = _folded(term.product)
            form = (forms[0] if forms else constant(1)) * number
            for extra in forms[1:]:  # two varying sides in one activation: fixed at what they are
                form = form * self.tracer.sizes.value(extra)
            row = np.zeros(n)
            for symbol, c in form.terms.items():
                row[column[symbol]] = float(c)
            matrix[born : dies + 1] += row * BYTES
            constants[born : dies + 1] += float(form.constant) * BYTES
        keep = _not_dominated(matrix, constants)
        return matrix[keep], constants[keep]


def _not_dominated(matrix: Floats, constants: Floats) -> npt.NDArray[np.intp]:
    """Rows that may hold the maximum: of two of which one is nowhere smaller (widths are not negative), that one."""
    rows, first = np.unique(np.column_stack([matrix, constants]), axis=0, return_index=True)
    kept = [i for i, row in enumerate(rows) if (rows >= row).all(axis=1).sum() == 1]
    return first[kept]


def is_counted(op: Operator) -> bool:
    """Whether the operator's MACs, activations and memory access count."""
    return op.macs[0] != 0


def storages(
    ops: Sequence[Operator], outputs: Sequence[int], measure: Callable[[Sides, Shape], Size]
) -> list[tuple[int, int, Size]]:
    """(first operator, last operator, size) of every activation in memory: views and in-place results share one."""
    root: dict[int, int] = {}
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    size: dict[int, Size] = {}

    def find(number: int) -> int:
        while root.get(number, number) != number:
            number = root[number]
        return number

    for at, op in enumerate(ops):
        read = op.activations
        for info in read:
            base = find(info.number)
            if base not in born:  # the image, or a constant that the model holds
                born[base], size[base] = 0, measure(info.sides, info.shape)
            dies[base] = at
        for info in op.outs:
            number = info.number
            if op.is_view and read:
                root[number] = find(read[0].number) if number != read[0].number else number
                continue
            if op.is_view or number in born or root.get(number, number) != number:
                dies[find(number)] = at
                continue
            born[number], dies[number], size[number] = at, at, measure(info.sides, info.shape)
    last = len(ops)
    for number in outputs:
        if find(number) in dies:
            dies[find(number)] = last
    return [(born[n], dies[n], size[n]) for n in born]


def costs_now(tracer: Tracer, energy_table: EnergyTable) -> Costs:
    """Costs of the traced model as it is, from the shapes that the trace met."""
    ops = tracer.ops[: tracer.eval_ops]
    counted = [op for op in ops if is_counted(op)]
    values = [s.value for s in tracer.sizes.symbols]
    macs = int(sum(op.macs[0] * prod(form.at(values) for form in op.macs[1]) for op in counted))
    activations = sum(prod(op.outs[0].shape) for op in counted)
    access = activations + sum(prod(info.shape) for op in counted for info in op.activations)
    reads = sum(tracer.parameters[name].numel() for op in counted for name in op.weights)
    change = [0] * (len(ops) + 2)  # of the bytes alive, before each operator
    for born, dies, size in storages(ops, tracer.output_numbers, lambda _, shape: BYTES * prod(shape)):
        change[born] += size
        change[dies + 1] -= size
    return Costs(
        params=sum(tracer.parameters[name].numel() for name in tracer.trainable),
        macs=macs,
        activations=activations,
        peak_memory_bytes=max(accumulate(change)),
        memory_access=reads + access,
        energy_uj=float(energy(np.float64(macs), np.float64(reads), np.float64(access), energy_table)),  # type: ignore[arg-type]
    )


def energy(macs: Floats, weight_reads: Floats, activation_access: Floats, table: EnergyTable) -> Floats:
    """Microjoules of one forward pass."""
    picojoules = (macs * table.mac_pj + weight_reads * table.weight_read_pj
                  + activation_access * table.activation_access_pj)  # fmt: skip
    return picojoules * 1e-6
