"""The engine. Read this file first.

A `Tensor` is an array that knows the `Function` that made it; a Function knows, by its edges, what it was given.
`backward()` walks those edges from the loss. A tensor that was used twice gets two contributions, and its gradient is
their sum: that sum, at the fork in front of every residual block, is what this library is about. So the walk first
counts how many consumers each node has, and visits a node only when all of them have contributed. It is a loop, not a
recursion, linear in the number of edges, and it drops what a node kept as soon as the node is done.

The walk is a generator of `Event`s. `backward()` only exhausts it; the stepper and the instruments watch it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from tinyres import graph
from tinyres.graph import Event, Handle, Node, Saved, Version
from tinyres.kernels import layout
from tinyres.operands import arrays_of, check_gradients, check_inplace, one_array, seed
from tinyres.state import setting, state

reached_leaves: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()  # those that got a gradient


class Tensor:
    """An array that takes part in differentiation.

    data: a numpy (or cupy) array of any shape, wrapped without a copy; node: the Function that made it, None for a
    leaf; grad: the gradient of a leaf after backward(), a Tensor of the same shape. Raises TypeError when a tensor of
    integers or booleans is asked for a gradient.
    """

    __slots__ = ("data", "grad", "node", "hooks", "wants_grad", "version", "is_view", "__weakref__")
    __array_ufunc__ = None  # numpy_array * tensor must ask the tensor, not loop over it
    edges = ()              # a leaf is where the walk ends

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data = data if hasattr(data, "strides") and not isinstance(data, np.generic) else np.asarray(data)
        self.grad: Tensor | None = None
        self.node: Function | None = None
        self.hooks: Sequence[Callable] = ()
        self.wants_grad, self.version, self.is_view = False, Version(), False
        if requires_grad:
            self.requires_grad = True

    @property
    def requires_grad(self) -> bool:
        return self.node is not None or self.wants_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self.node is not None:
            raise RuntimeError(f"requires_grad is set on leaves; this tensor was made by {self.node.name}: detach() it")
        if value and self.dtype.kind != "f":
            raise TypeError(f"requires_grad: only float tensors can have it, got {self.dtype}: use astype('float32')")
        self.wants_grad = bool(value)

    @property
    def edge(self) -> Function | Tensor | None:
        """Where a gradient of this tensor goes: to its node; to itself if it is a leaf that wants one; or nowhere."""
        return self.node if self.node is not None else self if self.wants_grad else None

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    is_leaf = property(lambda self: self.node is None)

    def backward(self, grad: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Add to `.grad` of every leaf the derivative of this tensor, weighted by `grad` (this tensor's shape).

        `grad` may be left out for a single element. The graph is freed on the way unless `retain_graph`; with
        `create_graph` the gradients can themselves be differentiated. Raises RuntimeError if nothing here requires a
        gradient, if the graph was freed, or if a kept array was changed in place since.
        """
        retain = create_graph if retain_graph is None else retain_graph
        graph.exhaust(walk([self], [grad], None, retain, create_graph, merge=True))

    def backward_steps(self, grad: Any = None, retain_graph: bool = True,
                       create_graph: bool = False) -> Iterator[Event]:
        """The backward pass as a generator of events. Leaves get their gradients when it ends; abandoning it changes
        nothing, which is why it retains the graph unless told otherwise."""
        return walk([self], [grad], None, retain_graph, create_graph)

    def register_hook(self, hook: Callable) -> Handle:
        """Call `hook(grad)` when this tensor's gradient is complete; what it returns, if anything, replaces it. `grad`
        must not be changed in place: the identity route hands one array to several tensors. Returns a handle with
        remove(). Raises RuntimeError if the tensor does not require a gradient."""
        if self.edge is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient; set requires_grad=True")
        self.edge.hooks = self.edge.hooks or []
        return Handle(self.edge.hooks, hook)

    def retain_grad(self) -> None:
        """Ask an interior tensor to keep its gradient of the last pass in `.grad`, as leaves do."""
        if self.edge is None:
            raise RuntimeError("retain_grad: this tensor does not require a gradient, so it will get none")
        if self.node is not None:
            self.node.retainer = weakref.ref(self)

    def detach(self) -> Tensor:
        """The same array outside the graph. Writing into it in place is noticed by ops that kept the original."""
        out = Tensor(self.data)
        out.version, out.is_view = self.version, True
        if state.debug is not None:
            state.debug.cut("detach", self, out)
        return out

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self.node is not None:
            raise RuntimeError(f"deepcopy: only leaves are copied, and this was made by {self.node.name}: detach() it")
        out = memo[id(self)] = Tensor(self.data.copy(order="K"), self.wants_grad)
        return out

    def bump(self, writer: str) -> None:
        """Note that `writer` changed `.data` in place, so that an op that kept the old values can say so."""
        self.version.count += 1
        self.version.writer = writer


class Function(Node):
    """One op. Each call is a fresh instance, which becomes a node of the graph.

    A subclass writes `forward(self, *arrays, **params)` on arrays and `backward(self, grad)`, which returns one
    gradient (or None) per input. `self.save(...)` keeps what backward needs and `self.saved` gives it back;
    `self.needs[i]` tells whether input i wants a gradient. The rule is written with ops: the engine feeds it arrays,
    or, under create_graph, Tensors, and then the rule is recorded and can be differentiated again.
    """

    name = "function"
    inplace = False  # forward writes into its first input and returns it
    fresh = False    # backward allocates what it returns, so the walk may add into it
    optional = False  # inputs may be None
    join: Callable   # add(a, b), which sums contributions; ops/ installs it
    hooks: Sequence[Callable] = ()
    retainer: Callable | None = None
    line = ""        # where the user called the op, noted under debug()
    _saved: Any = ()  # None once it was freed

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def forward(self, *arrays: Any, **params: Any) -> Any:
        raise TypeError(f"{self.name} must define forward(self, *arrays, **params)")

    def backward(self, grad: Any) -> Any:
        raise TypeError(f"{self.name} must define backward(self, grad)")

    def save(self, *arrays: Any) -> None:
        """Keep inputs, the output, or constants for backward."""
        self._saved = arrays

    @classmethod
    def apply(cls, *inputs: Any, **params: Any) -> Any:
        """Run the op. Given arrays it returns an array; given at least one Tensor it returns a Tensor and records."""
        node = cls()
        node.params = params
        arrays = arrays_of(cls.name, inputs, cls.optional)
        if not any(isinstance(x, Tensor) for x in inputs):
            return node.forward(*arrays, **params)
        edges = tuple(x.edge if isinstance(x, Tensor) else None for x in inputs)
        tracked = state.grad_enabled and any(e is not None for e in edges)
        if cls.inplace:
            check_inplace(cls.name, inputs[0], tracked)
        out = one_array(cls.name, node.forward(*arrays, **params))
        result = inputs[0] if cls.inplace else Tensor(out)
        if cls.inplace:
            result.bump(cls.name)
        else:
            graph.share_version(result, inputs)
        if tracked and result.dtype.kind == "f":
            node.edges, node.shape, node.dtype = edges, result.shape, result.dtype
            node._saved = [Saved(a, inputs, arrays, result) for a in node._saved]
            if result.node is not None:  # changed in place: retain_grad() is about the tensor as it is now
                node.retainer, result.node.retainer = result.node.retainer, None
            result.node, result.wants_grad = node, False
        if state.debug is not None:
            state.debug.forward(node, inputs, edges, result)
        return result

    @property
    def saved(self) -> list[Any]:
        """What save() kept: arrays, or under create_graph Tensors that lead back to where they came from."""
        if self._saved is None:
            raise RuntimeError(f"{self.name}: backward a second time through a graph that was freed; pass "
                               f"retain_graph=True to the first backward(){self.line}")
        for s in self._saved:
            s.check(self)
        return [self._linked(s) if self.linking else s.array for s in self._saved]

    def _linked(self, kept: Saved) -> Any:
        if kept.version is None:
            return kept.array
        edge = self if kept.origin == -1 else self.edges[int(kept.origin or 0)]
        if isinstance(edge, Tensor):
            return edge
        out = Tensor(kept.array)
        out.node, out.version = edge, kept.version
        return out

    def contributions(self, grad: Any, leading: set | None, create_graph: bool, into: tuple) -> tuple[Any, ...]:
        """Run the backward rule for those inputs that want a gradient, and check what it gives."""
        self.needs = tuple(e is not None and (leading is None or e in leading) for e in self.edges)
        self.linking, self.into = create_graph, into
        with setting(grad_enabled=create_graph, walking=True):
            grads = check_gradients(self, self.backward(grad))
        self.into = ()  # not to be kept as long as the graph
        if state.debug is not None:
            state.debug.backward(self, grad, grads)
        return grads


def walk(outputs: Sequence[Tensor], grads: Sequence[Any], wanted: set | None, retain_graph: bool, create_graph: bool,
         stop: frozenset = frozenset(), merge: bool = False) -> Generator[Event, None, dict]:
    """The backward pass from `outputs`. With `wanted`, a set of edges, it visits only what leads to them, returns their
    gradients as a dict and leaves `.grad` alone; it never goes past a node in `stop`. With `merge`, rules may add to
    what other consumers gave; "done" events then show the sum."""
    merge = merge and not create_graph and state.debug is None
    totals: dict[Any, tuple[Any, bool]] = {}  # node -> (its gradient so far, whether the walk allocated it)
    for output, grad in zip(outputs, grads, strict=True):
        start = seed(output, grad)
        _contribute(totals, output.edge, _as_tensor(start) if create_graph else _array(start), False)
    order = graph.topological_order([output.edge for output in outputs], stop)
    leading = None if wanted is None else graph.leading_to(wanted, order, stop)
    found, leaves = {}, []
    for node in order:
        if node not in totals or (leading is not None and node not in leading):
            continue
        grad, owned = totals.pop(node)
        for hook in tuple(node.hooks):
            grad, owned = graph.hooked(node, hook, _as_tensor(grad), create_graph), False
        if state.debug is not None:
            state.debug.arrived(order, node, grad)
        yield Event("ready", node, grad)
        if wanted is not None and node in wanted:
            found[node] = grad
        tensor = node if isinstance(node, Tensor) else node.retainer and node.retainer()
        if tensor is not None:
            leaves.append((tensor, grad, owned))
        if isinstance(node, Tensor) or node in stop or (leading is not None and leading.isdisjoint(node.edges)):
            continue
        into = graph.owned(totals, node.edges) if merge and node.merges else ()
        contributions = node.contributions(grad, leading, create_graph, into)
        kept = sum(getattr(s.array, "nbytes", 0) for s in node._saved or ())
        if not retain_graph:
            node._saved = None
        yield Event("done", node, grad, contributions, kept)
        xp = layout.array_module(_array(grad))
        for edge, g in zip(node.edges, contributions, strict=True):
            if g is not None and not any(g is total for total in into):  # those the rule has added to
                _contribute(totals, edge, g, node.fresh and not create_graph and not xp.may_share_memory(g, grad))
    for tensor, grad, owned in leaves if wanted is None else ():
        _commit(tensor, grad, owned)
    return found


def _contribute(totals: dict, edge: Any, grad: Any, fresh: bool) -> None:
    """Add one consumer's contribution. The identity route hands on the very array it received, so only a buffer that
    this walk allocated may be written into."""
    if edge not in totals:
        totals[edge] = grad, fresh
        return
    total, owned = totals[edge]
    if owned:
        total += grad
    elif fresh:
        grad += total
        total = grad
    else:
        total = _join(total, grad)
    totals[edge] = total, not isinstance(total, Tensor)


def _join(a: Any, b: Any) -> Any:
    """a + b, recorded if it can be differentiated, whatever no_grad() the pass runs in."""
    with setting(grad_enabled=True, walking=True):
        return Function.join(a, b)


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


def _as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)


def _commit(tensor: Tensor, grad: Any, owned: bool) -> None:
    """Give a leaf its gradient (added to what earlier passes brought), or an interior tensor that asked for it."""
    earlier = None
    if tensor.node is None:
        reached_leaves[id(tensor)], earlier = tensor, tensor.grad
    tensor.grad = _join(earlier, grad) if earlier is not None else Tensor(grad) if owned else own(grad)


def own(grad: Any) -> Tensor:
    """A gradient as a Tensor with memory of its own: the identity route may have brought one array to several tensors.
    One that can be differentiated again stays so; adding -0.0 changes no value, not even the sign of a zero."""
    return _join(grad, -0.0) if isinstance(grad, Tensor) else Tensor(grad.copy(order="K"))
