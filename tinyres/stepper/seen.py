"""What the observer knows of the forward pass beyond the trace: which modules run, which blocks, and each op's call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinyres.models.blocks import Block
from tinyres.nn import Module
from tinyres.stepper.schema import Node


@dataclass(eq=False)
class Scope:
    """A module, or a fused op that runs as its parts, while it runs. number: of the call among all."""

    number: int
    name: str
    type: str
    module: Module | None
    layer: bool               # it has no modules inside


@dataclass(eq=False)
class BlockCall:
    """A residual block while it runs. fork: id of the tensor at which shortcut and branch part; on_shortcut: ids of the
    nodes behind the shortcut, before the join; handle: what stands for the fork where the shortcut is an identity."""

    name: str
    block: Block
    fork: int | None = None
    join: int | None = None
    on_shortcut: set[int] = field(default_factory=set)
    handle: Any = None
    nodes: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """An op that ran: its node in the trace, and what the recorder must know of it beyond that."""

    node: Node
    function: Any
    scope: Scope | None            # the layer that it counts to, None outside of layers
    block: BlockCall | None
    on_shortcut: bool
    arrays: tuple[Any, ...] = ()   # of the inputs, where they are held
    result: Any = None             # and what the op made
    picture: Any = None            # of an image batch, the first image's first channels
    called: str = ""               # which function of the library the user's line called, and which call that was
    site: int = 0
