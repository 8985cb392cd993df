"""The forward pass, watched: every op, the module in which it ran, and what it was given.

The engine calls `forward` for every op, as it does for tr.debug(), and modules and fused ops say when they begin and
end. Nothing of the computation changes. Of arrays only summaries are kept, unless `hold` asks for them.
"""

from __future__ import annotations

import weakref
from typing import Any

from tinyres.graph import topological_order
from tinyres.models.blocks import Block
from tinyres.nn import Module, Parameter
from tinyres.state import state
from tinyres.stepper.call_site import call_site
from tinyres.stepper.difference import input_names
from tinyres.stepper.schema import SHORTCUT, Input, Node
from tinyres.stepper.seen import BlockCall, Call, Scope
from tinyres.stepper.short import described
from tinyres.stepper.summarise import first_channels, summarise
from tinyres.tensor import Tensor


class Observer:
    """What state.debug and state.calls call during the forward pass that is recorded.

    names: of leaf tensors, by identity; values: whether to summarise what ops compute; hold: keep input arrays of every
    op, or of the node `only`, up to so many bytes of them; before(node, result): called before a result is used;
    double: arrays that modules are called with become float64 for the time of the pass.
    """

    def __init__(self, names: dict[int, str] | None = None, values: bool = True, hold: int = 0,
                 before: Any = None, only: int | None = None, double: bool = False):
        self.nodes: list[Node] = []
        self.calls: dict[int, Call] = {}        # by node
        self.leaves: dict[int, Tensor] = {}     # by node
        self.blocks: list[BlockCall] = []
        self.scopes: list[Scope] = []
        self.running: list[BlockCall] = []
        self.modules = 0
        self.buffers: list[tuple[Tensor, Any, Any]] = []
        self.put_back: set[int] = set()         # their arrays, by identity
        self.names = names or {}
        self.values, self.room, self.before, self.only = values, hold, before, only
        self.outer: Any = None
        self.double = double
        self.by_edge: dict[int, int] = {}       # id(function or leaf) -> node
        self.loose: dict[int, tuple[Any, int]] = {}  # id(tensor outside the graph) -> (weak reference, node)
        self.alive: list[Any] = []              # functions and modules, so that no id is used twice
        self.reached: set[int] | None = None    # nodes that lead to the loss, once it is there
        self.earlier = False                    # whether some of the graph was made before anybody watched
        self.paths: dict[int, str] = {}
        self.known_roots: set[int] = set()
        self.given: set[int] = set()            # what networks were called with, by identity

    # --- modules ------------------------------------------------------------------------------------------------------

    def enter(self, module: Any, args: tuple) -> None:
        """A module, or the class of a fused op, begins."""
        self.modules += 1
        if not isinstance(module, Module):
            name = module.name
            self.scopes.append(Scope(self.modules, name, module.__name__, None, True))
            return
        root = not any(scope.module is not None for scope in self.scopes)
        if id(module) not in (self.known_roots if root else self.paths):  # within another: one it did not register
            self._meet(module)
        name = self.paths.get(id(module), "")
        layer = not any(True for _ in module.children())
        self.scopes.append(Scope(self.modules, name, type(module).__name__, module, layer))
        if self.running and module is self.running[-1].block.shortcut and args and isinstance(args[0], Tensor):
            self.running[-1].fork = self.id_of(args[0])
        if isinstance(module, Block):
            self.running.append(BlockCall(name or type(module).__name__, module))
            self.blocks.append(self.running[-1])
        for x in args if root else ():
            if isinstance(x, Tensor) and x.node is None:
                self.given.add(id(x))
                self.alive.append(x)
                self.names.setdefault(id(x), "input")
                if self.double and x.data.dtype == "float32":
                    self.buffers.append((x, x.data, x.data))
                    x.data = x.data.astype("float64")

    def leave(self, module: Any, result: Any) -> Any:
        """It ends. An identity on a shortcut returns the very tensor that the branch also uses; another handle of the
        same node tells the two apart, and changes nothing else."""
        self.scopes.pop()
        if isinstance(module, Block):
            self.running.pop()
        if self.running and module is self.running[-1].block.shortcut and isinstance(result, Tensor):
            block = self.running[-1]
            made = self.id_of(result)
            if made == block.fork and result.node is not None:
                twin = Tensor(result.data)
                twin.node, twin.version, twin.is_view = result.node, result.version, result.is_view
                block.handle = result = twin
            elif made != block.fork:
                block.on_shortcut.add(made)
        return result

    def _meet(self, module: Module) -> None:
        self.known_roots.add(id(module))
        self.alive.append(module)
        for path, part in module.named_modules():
            self.paths.setdefault(id(part), path)
        for path, parameter in module.named_parameters():
            self.names.setdefault(id(parameter), path)
        for buffer in module.buffers():
            self.moves(buffer)

    def moves(self, running: Any) -> None:
        """A buffer, or running statistics that a function is given, a Tensor or an array, may change: they are put back
        when the pass has ended."""
        array = running.data if isinstance(running, Tensor) else running
        if id(array) not in self.put_back:
            self.put_back.add(id(array))
            self.buffers.append((running if isinstance(running, Tensor) else Tensor(array), array,
                                 array.copy(order="K")))

    # --- ops ----------------------------------------------------------------------------------------------------------

    def forward(self, function: Any, inputs: Any, edges: Any, result: Tensor) -> None:
        """The engine ran an op."""
        if self.outer is not None:
            self.outer.forward(function, inputs, edges, result)
        if state.walking:
            return
        block = self.running[-1] if self.running else None
        names = input_names(function, len(inputs))
        sources: list[Input] = []
        for name, x, edge in zip(names, inputs, edges, strict=True):
            if not isinstance(x, Tensor):
                sources.append(Input(None, name, described(x)))
                continue
            route = SHORTCUT if block is not None and x is block.handle else ""
            sources.append(Input(self.id_of(x, edge), name, route=route))
        shortcut = block is not None and self._on_shortcut(block, sources)
        layer = next((scope for scope in self.scopes if scope.layer), None)
        within = next((scope for scope in reversed(self.scopes) if scope.module is not None), None)
        module = within.name if within else ""
        line, called, site = call_site()
        node = Node(len(self.nodes), "op", function.name, f"{module} {function.name}".strip(), tuple(result.shape),
                    str(result.dtype), module, within.type if within else "", block.name if block else "", line,
                    {key: described(value) for key, value in function.params.items()}, inputs=sources)
        self.nodes.append(node)
        call = Call(node, function, layer, block, shortcut, called=called, site=site)
        self.calls[node.id] = call
        if block is not None:
            block.nodes.append(node.id)
            if shortcut:
                block.on_shortcut.add(node.id)
        if self.before is not None:
            self.before(node, result)
        if self.values:
            node.value = summarise(result.data)
            call.picture = first_channels(result.data)
        if self.room > 0 and self.only in (None, node.id):
            self._hold(call, inputs, result)
        self._bind(result, result.edge, node.id)

    def leaf_picture(self, node: int) -> Any:
        """Of a leaf that holds images, the first image's first channels."""
        return first_channels(self.leaves[node].data)

    def add_graph(self, last: Any) -> None:
        """Nodes for an op that ran before anybody watched, and all such that it was computed from: their values are
        not known."""
        self.earlier = True
        for function in reversed(topological_order([last])):
            if id(function) in self.by_edge:
                continue
            if isinstance(function, Tensor):
                self.id_of(function)
                continue
            inputs = [Input(None if edge is None else self.by_edge[id(edge)], name)
                      for name, edge in zip(input_names(function, len(function.edges)), function.edges, strict=True)]
            node = Node(len(self.nodes), "op", function.name, function.name, tuple(function.shape),
                        str(function.dtype), inputs=inputs,
                        options={key: described(value) for key, value in function.params.items()})
            self.nodes.append(node)
            self.calls[node.id] = Call(node, function, None, None, False)
            self.by_edge[id(function)] = node.id
            self.alive.append(function)

    def wants(self, node: int, place: int) -> bool:
        """Whether this op's input wants a gradient, and the op, as far as that is known, leads to the loss."""
        call = self.calls.get(node)
        return call is not None and self.tracked(call) and call.function.edges[place] is not None \
            and (self.reached is None or node in self.reached)

    @staticmethod
    def tracked(call: Call) -> bool:
        """Whether the op is part of the graph."""
        return hasattr(call.function, "edges")

    def _on_shortcut(self, block: BlockCall, sources: list[Input]) -> bool:
        """Whether an op is between a block's fork and its join on the way past the branch."""
        if any(scope.module is block.block.shortcut for scope in self.scopes):
            return True
        behind = [s.route == SHORTCUT or s.source in block.on_shortcut for s in sources if s.source is not None]
        others = [s for s, short in zip((s for s in sources if s.source is not None), behind, strict=True) if not short]
        return any(behind) and all(self.nodes[s.source].kind != "op" or s.source not in block.nodes  # a learned scale
                                   for s in others if s.source is not None)

    def cut(self, name: str, source: Tensor, result: Tensor) -> None:
        """detach(): the values go on, the gradient does not."""
        if self.outer is not None:
            self.outer.cut(name, source, result)
        inputs = [Input(self.id_of(source), "x")]  # which may be a new node
        node = Node(len(self.nodes), "op", name, name, tuple(result.shape), str(result.dtype), inputs=inputs,
                    line=call_site()[0])
        self.nodes.append(node)
        self.calls[node.id] = Call(node, None, None, None, False)
        self._bind(result, result.edge, node.id)

    @staticmethod
    def checksum(array: Any) -> None:
        return None

    # Of a backward pass inside the callable, as for a penalty on a gradient, only what it hands on is of interest here.

    def arrived(self, order: Any, node: Any, grad: Any) -> None:
        if self.outer is not None:
            self.outer.arrived(order, node, grad)

    def backward(self, node: Any, grad: Any, grads: Any) -> None:
        if self.outer is not None:
            self.outer.backward(node, grad, grads)

    def check_saved(self, node: Any, kept: Any) -> None:
        if self.outer is not None:
            self.outer.check_saved(node, kept)

    def _hold(self, call: Call, inputs: Any, result: Tensor) -> None:
        arrays = tuple(x.data if isinstance(x, Tensor) else x for x in inputs)
        size = sum(getattr(a, "nbytes", 0) for a in arrays)
        if size <= self.room and not call.function.inplace:
            self.room -= size
            call.arrays, call.result = arrays, result.data

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _bind(self, x: Tensor, edge: Any, node: int) -> None:
        if edge is not None:
            self.by_edge[id(edge)] = node
            self.alive.append(edge)
        else:
            self.loose[id(x)] = (weakref.ref(x), node)

    def id_of(self, x: Tensor, edge: Any = None) -> int:
        """The node of a tensor; edge: where its gradient went before an op wrote into it. One that nothing here
        has made becomes a node now."""
        edge = x.edge if edge is None else edge
        if edge is not None:
            if id(edge) not in self.by_edge and not isinstance(edge, Tensor):
                self.add_graph(edge)
            known = self.by_edge.get(id(edge))
            return self._leaf(x, edge) if known is None else known
        reference, node = self.loose.get(id(x), (None, 0))
        return node if reference is not None and reference() is x else self._leaf(x, None)

    def node_of(self, edge: Any) -> int:
        """The node of what an event of the backward walk names, a function or a leaf."""
        return self.by_edge[id(edge)]

    def _leaf(self, x: Tensor, edge: Any) -> int:
        kind = "parameter" if isinstance(x, Parameter) else "input" if x.requires_grad else "constant"
        name = self.names.get(id(x)) or (getattr(x, "name", None) or kind)
        kind = "input" if id(x) in self.given and kind == "constant" else kind
        node = Node(len(self.nodes), kind, "", name, tuple(x.shape), str(x.dtype))
        if self.values:
            node.value = summarise(x.data)
        self.nodes.append(node)
        self.leaves[node.id] = x
        self._bind(x, edge, node.id)
        return node.id
