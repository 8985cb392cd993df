"""Taps: one run of a network, and of each residual block the tensors at its fork, its shortcut and its output.

A block calls `self.shortcut` once, on the tensor at which shortcut and branch part (models.blocks.Block). So hooks find
the fork without knowing what the block computes. A block is given an alias of its input: whoever else uses the input,
as in a concatenation of blocks, has nothing to do with the fork inside. At the shortcut's door stands one of three:

    watch    an alias. The graph stays whole; the gradient at the alias is what the shortcut brings to the fork.
    cut      a leaf of the same values. The fork's gradient is then the branch's alone, the leaf's the shortcut's.
    shut     an alias again; of the fork's gradient what the branch brings is dropped, as if the block had none.

For instruments that need no fork there is `calls`: the output of every layer and block. Running statistics, modes and
the random state are the business of tinyres.analysis.untouched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tinyres import ops
from tinyres.graph import Handle
from tinyres.models.blocks import Block, PlainBlock
from tinyres.nn import Module
from tinyres.operands import type_name
from tinyres.tensor import Tensor

Door = Callable[[int, Tensor], Tensor]  # (which call of a block, the fork) -> what the shortcut is given


@dataclass(eq=False)
class Tap:
    """One call of a residual block. A block that is used several times has several.

    source: the tensor that the block was given; entrance: the alias of it that the block works on; fork: where shortcut
    and branch part, the entrance itself unless an activation comes first; door: what the shortcut was given in place of
    the fork; shortcut: what it made of that; output: the block's result.
    """

    name: str
    block: Block
    source: Tensor
    entrance: Tensor
    fork: Tensor = field(init=False)
    door: Tensor = field(init=False)
    shortcut: Tensor = field(init=False)
    output: Tensor = field(init=False)


def watch(call: int, fork: Tensor) -> Tensor:
    """An alias of the fork."""
    return ops.alias(fork)


def cut(call: int, fork: Tensor) -> Tensor:
    """A leaf with the fork's values, which gets the shortcut's gradient, if the fork gets any."""
    return Tensor(fork.data, requires_grad=fork.requires_grad)


def shut(call: int, fork: Tensor) -> Tensor:
    """An alias of the fork; the fork hands on the gradient of the alias alone, not what the branch brings."""
    door = ops.alias(fork)
    if door.requires_grad:
        arrived: list[Tensor] = []
        door.register_hook(arrived.append)
        fork.register_hook(lambda grad: arrived[-1] if arrived else grad * 0.0)
    return door


@contextlib.contextmanager
def tapped(network: Module, door: Door = watch) -> Iterator[list[Tap]]:
    """Inside, each call of a residual block of `network` is added to the list, in the order in which calls begin.

    door(i, fork): what stands at the shortcut of call i. The hooks are gone afterwards, also after an error. Raises
    RuntimeError, naming the block, for one that does not call its shortcut exactly once.
    """
    watcher = _Watcher(door)
    try:
        watcher.attach(network)
        yield watcher.taps
    finally:
        for handle in watcher.handles:
            handle.remove()


class _Watcher:
    """The hooks, and which blocks are being run: the innermost last."""

    def __init__(self, door: Door):
        self.door = door
        self.taps: list[Tap] = []
        self.running: list[tuple[int, Tap]] = []
        self.handles: list[Handle] = []
        self.names: dict[int, str] = {}

    def attach(self, network: Module) -> None:
        if not isinstance(network, Module):
            raise TypeError(f"tapped: expected a network, got {type_name(network)}: pass an nn.Module, like "
                            "models.resnet20()")
        shortcuts: set[int] = set()  # two blocks may use one module
        for name, module in network.named_modules():
            if isinstance(module, Block):
                self.names[id(module)] = name or type(module).__name__
                self.handles.append(module.register_forward_pre_hook(self.enter))
                self.handles.append(module.register_forward_hook(self.leave))
                if id(module.shortcut) not in shortcuts:
                    shortcuts.add(id(module.shortcut))
                    self.handles.append(module.shortcut.register_forward_pre_hook(self.at_door))
                    self.handles.append(module.shortcut.register_forward_hook(self.behind_shortcut))

    def enter(self, block: Any, args: tuple) -> tuple:
        source = args[0]
        tap = Tap(self.names[id(block)], block, source, ops.alias(source))
        self.running.append((len(self.taps), tap))
        self.taps.append(tap)
        return (tap.entrance, *args[1:])

    def at_door(self, shortcut: Module, args: tuple) -> tuple | None:
        if not self.running or self.running[-1][1].block.shortcut is not shortcut:
            return None  # used outside of its block
        call, tap = self.running[-1]
        if hasattr(tap, "fork"):
            raise RuntimeError(f"{self._who(tap)} called its shortcut twice: a block's forward calls self.shortcut "
                               "once, on the tensor at which shortcut and branch part")
        tap.fork = args[0]
        tap.door = self.door(call, tap.fork)
        return (tap.door, *args[1:])

    def behind_shortcut(self, shortcut: Module, args: tuple, result: Tensor) -> None:
        if self.running and self.running[-1][1].block.shortcut is shortcut:
            self.running[-1][1].shortcut = result

    def leave(self, block: Any, args: tuple, output: Tensor) -> None:
        _, tap = self.running.pop()
        if not hasattr(tap, "fork"):
            raise RuntimeError(f"{self._who(tap)} did not call its shortcut: a block's forward calls self.shortcut "
                               "once, on the tensor at which shortcut and branch part")
        tap.output = output

    def _who(self, tap: Tap) -> str:
        return f"{type(tap.block).__name__} {tap.name!r}"


@dataclass(eq=False)
class Call:
    """One call of a layer, or of a block, with or without a shortcut, as `is_block` tells. seen: what was asked for."""

    name: str
    type: str
    is_block: bool
    input: Tensor
    output: Tensor
    seen: Any


@contextlib.contextmanager
def calls(network: Module, see: Callable[[Tensor], Any] | None = None) -> Iterator[list[Call]]:
    """Inside, each call of a block, and of a layer (a module without modules), is added to the list as it ends. One
    that returns its very input, like nn.Identity or a ReLU in place, is left out.

    see(output) is asked at once, before a later layer may write into the output. A block is a Block, a PlainBlock, or
    what stands in one of the network's `stages`.
    """
    if not isinstance(network, Module):
        raise TypeError(f"calls: expected a network, got {type_name(network)}: pass an nn.Module, like "
                        "models.resnet20()")
    found: list[Call] = []
    names = {id(module): name for name, module in network.named_modules()}
    blocks = {id(module) for module in network.modules() if isinstance(module, (Block, PlainBlock))}
    for stage in getattr(network, "stages", ()):
        blocks |= {id(module) for module in network.get_submodule(stage).children()}

    def after(module: Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor) and output is not args[0]:
            kind = type(module).__name__
            seen = None if see is None else see(output)
            found.append(Call(names[id(module)] or kind, kind, id(module) in blocks, args[0], output, seen))

    handles = [module.register_forward_hook(after) for module in network.modules()
               if id(module) in blocks or not any(True for _ in module.children())]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def objective(output: Tensor, labels: Any) -> Tensor:
    """The number that is differentiated: mean cross-entropy for labels (N,), else what the function `labels` makes of
    the output. Raises TypeError unless that is a single element."""
    loss = labels(output) if callable(labels) else ops.cross_entropy(output, labels)
    if not isinstance(loss, Tensor) or loss.data.size != 1:
        got = f"shape {loss.shape}" if isinstance(loss, Tensor) else type_name(loss)
        raise TypeError(f"objective: the function of the output must return one number as a Tensor, got {got}: use "
                        "its sum() or mean()")
    return loss


def leaf(images: Any, dtype: Any = None) -> Tensor:
    """Images as a leaf of its own that wants a gradient. Raises TypeError for what are no floats."""
    array = images.data if isinstance(images, Tensor) else images
    if not hasattr(array, "dtype") or array.dtype.kind != "f":
        got = getattr(array, "dtype", type_name(array))
        raise TypeError(f"the images must be an array or Tensor of floats, got {got}: take them from "
                        "data.digits('train').batch(64)")
    return Tensor(array if dtype is None else array.astype(dtype), requires_grad=True)
