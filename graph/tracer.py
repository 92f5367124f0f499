"""One forward pass on the meta device, recorded: which operators run, and how their sizes hang together.

Nothing is computed and the model is not touched: its parameters are swapped for meta tensors, and normalisation and
element-wise operators are answered with an empty tensor of the right shape. Every side of every tensor carries a
linear form in layer widths (sizes.py). When asked to label, every channel also carries the number of the parameter
entry that made it, and movement operators move these labels as they move the data (labels.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import UntraceableModel
from .comparison import align, compare, is_foretold
from .labels import Labels
from .places import first_line, place_of
from .record import COPY, Clash, Info, Operator, Product, Shape, Side, Sides, rule_for
from .sizes import PARAMETER, SLACK, Sizes

META = torch.device("meta")
SEVERAL = (list, tuple)
HOLDERS = (Tensor, *SEVERAL)


class Tracer(Labels, TorchDispatchMode):
    """The dispatch mode that records; after `run`, its fields hold the trace."""

    def __init__(
        self,
        model: nn.Module,
        shapes: Mapping[str, Shape] | None = None,
        *,
        sizes: Sizes | None = None,
        readings: Mapping[int, int] | None = None,
        labelled: Mapping[str, Sequence[bool]] | None = None,
        reference: Tracer | None = None,
        whole_groups: Collection[str] = (),
        values: list[int] | None = None,
    ) -> None:
        if isinstance(model, torch.jit.ScriptModule | nn.DataParallel):
            raise UntraceableModel(f"a {type(model).__name__} hides what runs: trace the module that it was made of")
        TorchDispatchMode.__init__(self)
        Labels.__init__(self, labelled)
        self.model = model
        self.sizes = sizes or Sizes()
        self.readings = dict(readings or {})
        self.ops: list[Operator] = []
        self.reference, self.values = reference, values
        self.whole_groups: frozenset[str] = reference.whole_groups if reference else frozenset(whole_groups)
        self.unknown: dict[str, str] = {}  # operator -> where it was met
        self._info: dict[int, Info] = {}
        self._alive: list[Tensor] = []
        self._moved: dict[int, Tensor] = {}
        self._modules = list(model.named_modules(remove_duplicate=False))
        self.names = {id(m): name for name, m in reversed(self._modules)}
        self.stack: list[str] = []
        self.calls: list[tuple[str, int, int, int, int]] = []  # leaf calls: path, first/last operator, in/out tensor
        self.owner_of: dict[str, nn.Module] = {}
        self.parameters: dict[str, Tensor] = {}
        self.parameter_sides: dict[str, Sides] = {}
        self.untouched: set[str] = set()
        self.trainable: set[str] = set()  # what counts as a parameter: not the buffers
        self.output_numbers: tuple[int, ...] = ()
        self.eval_ops = 0
        self.training_fails = False
        self.misread: list[int] = []  # operators whose sizes follow in another way than the reference read
        self._places: list[tuple[dict[str, Any], str, Tensor]] = []  # where which meta tensor goes during a pass
        self._add_parameters(shapes or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and what keeps the compiler out takes time at every operator

    def _add_parameters(self, shapes: Mapping[str, Shape]) -> None:
        made: dict[int, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            for path, module in self._modules:
                members = getattr(module, kind)
                for short, tensor in members.items():
                    if tensor is None:
                        continue
                    meta = made.get(id(tensor))
                    if meta is None:
                        name = f"{path}.{short}" if path else short
                        if kind == "_parameters":
                            self.trainable.add(name)
                        made[id(tensor)] = meta = self._add_parameter(name, tensor, module, shapes)
                    self._places.append((members, short, meta))

    def _add_parameter(self, name: str, tensor: Tensor, owner: nn.Module, shapes: Mapping[str, Shape]) -> Tensor:
        if is_lazy(tensor):
            raise UntraceableModel(f"{name} has no shape yet (a lazy module): run the model once before tracing it")
        shape = shapes[name] if name in shapes else tuple(tensor.shape)
        meta = torch.empty(shape, dtype=tensor.dtype, device=META)
        sides: Sides = tuple([Side(self.sizes.new(n, PARAMETER)) for n in shape])
        self.parameters[name] = meta
        self.parameter_sides[name] = sides
        self.owner_of[name] = owner
        self.untouched.add(name)
        return self.know(meta, Info(sides, self.parameter_labels(name, shape, sides), frozenset([name])))

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, input_shape: Sequence[Shape], training: bool = False) -> None:
        """Follow one forward pass; raises UntraceableModel when it reads values or fails, Clash against a reference."""
        inputs = [self.know(torch.empty(shape, device=META), Info(tuple(shape))) for shape in input_shape]
        failed = f"the forward pass failed on shapes {[list(s) for s in input_shape]}"
        try:
            with self._in_mode(training), self._on_meta(), self._watched(), torch.no_grad(), self:
                output = self.model(*inputs)
        except UntraceableModel:
            raise
        except Clash as clash:
            if self.reference is not None:
                raise
            raise UntraceableModel(f"{failed}: {clash}") from None
        except Exception as error:
            if self.reference is not None:
                raise Clash(len(self.ops), f"{first_line(error)} at {self.where()}") from None
            raise UntraceableModel(
                f"{failed}: {type(error).__name__}: {first_line(error)} ({place_of(error)})"
            ) from None
        leaves = _tensors(output)
        self.output_numbers += tuple(self._info[id(leaf)].number for leaf in leaves if id(leaf) in self._info)
        for leaf in leaves:
            self.freeze_sides(self.info(leaf).sides, "output of the model")
            self.mark_outputs(len(self.ops), [self.info(leaf)])

    @contextmanager
    def _in_mode(self, training: bool) -> Iterator[None]:
        """The model in training or evaluation mode, and each module as it was afterwards."""
        modes = [(module, module.training) for _, module in self._modules]
        try:
            if any(mode != training for _, mode in modes):
                self.model.train(training)
            yield
        finally:
            for module, mode in modes:
                if module.training != mode:
                    module.training = mode

    @contextmanager
    def _on_meta(self) -> Iterator[None]:
        """The model with meta tensors for its parameters and buffers."""
        own = [members[short] for members, short, _ in self._places]
        try:
            for members, short, meta in self._places:
                members[short] = meta
            yield
        finally:
            for (members, short, _), tensor in zip(self._places, own, strict=True):
                members[short] = tensor

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Keep the path of the running module, and note what each leaf module turned into what."""
        starts: list[tuple[int, int]] = []

        def before(module: nn.Module, args: Any) -> None:
            self.stack.append(self.names.get(id(module), type(module).__name__))
            starts.append((len(self.ops), self._number_of(args[0] if args else None)))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            path, (start, source) = self.stack.pop(), starts.pop()
            if not module._modules and isinstance(output, Tensor):
                self.calls.append((path, start, len(self.ops), source, self._number_of(output)))

        hooks = (
            nn.modules.module.register_module_forward_pre_hook(before),
            nn.modules.module.register_module_forward_hook(after),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.stack.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, rule = rule_for(func)
        args = [self._moved_to_meta(a) if isinstance(a, HOLDERS) else a for a in args]
        kwargs = {k: self._moved_to_meta(v) for k, v in kwargs.items()} if kwargs else {}
        if self.reference is not None:
            align(self, name)
        return rule(self, func, args, kwargs)

    def _moved_to_meta(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            holds = isinstance(value, SEVERAL) and value and not isinstance(value[0], int)
            return [self._moved_to_meta(v) for v in value] if holds else value
        if value.is_meta:
            return value
        if id(value) not in self._moved:
            self._alive.append(value)
            moved = torch.empty_like(value, device=META)
            self._moved[id(value)] = self.know(moved, Info(tuple(moved.shape), fixed=True))
        return self._moved[id(value)]

    # -- what rules use --------------------------------------------------------------------------------------------

    def know(self, tensor: Tensor, info: Info) -> Tensor:
        """Attach what is known to a tensor."""
        before = self._info.get(id(tensor))
        if before is None:
            self._alive.append(tensor)
        info.number = len(self._info) if before is None else before.number
        info.shape = tuple(tensor.shape)
        self._info[id(tensor)] = info
        return tensor

    def info(self, tensor: Tensor) -> Info:
        """What is known of a tensor; of a stranger, only its shape."""
        known = self._info.get(id(tensor))
        if known is None:
            known = Info(tuple(tensor.shape))
            self.know(tensor, known)
        return known

    def _number_of(self, value: Any) -> int:
        known = self._info.get(id(value))
        return -1 if known is None else known.number

    @property
    def path(self) -> str:
        """The running module."""
        return self.stack[-1] if self.stack else ""

    def where(self) -> str:
        """The running module and the line of the user's code."""
        line = place_of(None)
        return f"{self.path} ({line})" if self.path else line

    def record(
        self,
        name: str,
        kind: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        macs: Product = (0, ()),
        alternatives: int = 0,
        is_view: bool = False,
        in_place: bool = False,
    ) -> None:
        """Append the operator; against a reference, raise Clash where a size is not what the reference foretells."""
        if name == COPY and self.reference is not None and not is_foretold(self, COPY, len(self.ops)):
            return
        ins, outs = tuple([self.info(t) for t in inputs]), tuple([self.info(t) for t in outputs])
        made = [i for i in ins if i.weight]  # of parameters alone
        weights = tuple(sorted({name for i in made for name in i.weight})) if made else ()
        self.untouched.difference_update(weights)
        if made and len(made) == len(ins) and all(o.weight for o in outs):
            is_view = True  # computed from parameters alone: no activation
        op = Operator(name, kind, self.path, ins, outs, weights, macs, alternatives, is_view, in_place)
        self.ops.append(op)
        if self.labelled is not None and name != COPY:
            self.mark_outputs(len(self.ops) - 1, outs)
        if self.reference is not None:
            compare(self, op)

    def unify(self, a: int | Side, b: int | Side, why: str) -> int | Side:
        """The side that two sides of one size are; freezes what cannot vary because the other is constant."""
        if isinstance(a, Side) and isinstance(b, Side):
            if a is not b:
                self.sizes.equate(a.form, b.form, f"{why} at {self.path}")
            return a if a.pieces or a.whole else b
        if isinstance(a, Side):
            self.sizes.freeze(a.form, f"{why} at {self.path}: the other side has a fixed size")
            return b
        if isinstance(b, Side):
            self.sizes.freeze(b.form, f"{why} at {self.path}: the other side has a fixed size")
        return a

    def freeze_sides(self, sides: Sequence[int | Side], why: str) -> None:
        """Fix every side that may vary."""
        for side in sides:
            if isinstance(side, Side):
                self.sizes.freeze(side.form, why)

    def slack(self, value: int) -> Side:
        """A side whose size the code decides in a way that only other sizes can tell."""
        return Side(self.sizes.new(value, SLACK))


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in an output, dataclass-like outputs of other libraries included."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
