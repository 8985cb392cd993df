"""Other routes through the blocks of a network: past a block's branch, or through another block.

Nothing of the network is rebuilt: the forward of each block is stood in for, and single calls are sent elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tinyres.models.blocks import Block
from tinyres.nn import Module
from tinyres.state import no_grad
from tinyres.tensor import Tensor


@dataclass(frozen=True)
class Place:
    """A block's place in the forward pass. A block that is used several times has several."""

    block: str
    type: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    removable: bool

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have one shape."""
        return self.input == self.output


def blocks_of(network: Module) -> dict[str, Module]:
    """The residual blocks that lie in no other; of a network without any the modules of its stages."""
    residual = {name: m for name, m in network.named_modules() if isinstance(m, Block)}
    if not residual:
        return {f"{stage}.{name}": m for stage in getattr(network, "stages", ())
                for name, m in network.get_submodule(stage).named_children()}
    within = {id(part) for block in residual.values() for part in block.modules() if part is not block}
    return {name: m for name, m in residual.items() if id(m) not in within}


class Detour:
    """Stands in for the forward of each block, to send single calls elsewhere: to no branch, or to another block.

    Calls are counted in the order of the forward pass, so that a block used twice can be removed once.
    """

    def __init__(self, network: Module, names: Sequence[str] | None):
        self.network = network
        self.blocks = blocks_of(network) if names is None else {name: network.get_submodule(name) for name in names}
        if not self.blocks:
            raise ValueError(f"lesion: {type(network).__name__} has no residual blocks and no stages: name the "
                             "modules to remove by blocks=[...]")
        self.own = {name: block.forward for name, block in self.blocks.items()}
        self.calls: list[tuple[str, tuple[int, ...], tuple[int, ...]]] | None = None
        self.route: Mapping[int, Callable] = {}
        self.position, self.inside = 0, False

    def __enter__(self) -> Detour:
        for name, block in self.blocks.items():
            vars(block)["forward"] = self._standing_in(name)
        self.start = self.network.register_forward_pre_hook(self._begin)
        return self

    def __exit__(self, *exc: object) -> None:
        self.start.remove()
        for block in self.blocks.values():
            vars(block).pop("forward", None)

    def _begin(self, network: Module, args: tuple) -> None:
        self.position, self.inside = 0, False

    def _standing_in(self, name: str) -> Callable:
        def forward(x: Tensor) -> Tensor:
            if self.inside:  # another block's forward calls this one
                return self.own[name](x)
            position, self.position = self.position, self.position + 1
            self.inside = True
            try:
                y = self.route.get(position, self.own[name])(x)
            finally:
                self.inside = False
            if self.calls is not None:
                self.calls.append((name, tuple(x.shape[1:]), tuple(y.shape[1:])))
            return y

        return forward

    def places(self, image: Any) -> list[Place]:
        """The blocks in the order of the calls, from one image's forward pass."""
        self.calls = []
        with no_grad():
            self.network(Tensor(image))
        calls, self.calls = self.calls, None
        self.order = [name for name, _, _ in calls]
        return [Place(name, type(self.blocks[name]).__name__, before, after,
                      isinstance(self.blocks[name], Block) or before == after) for name, before, after in calls]

    def block(self, place: int) -> Callable:
        """The forward of the block at a place."""
        return self.own[self.order[place]]

    def without(self, place: int) -> Callable:
        """What is left of the block at a place when its branch is gone."""
        block = self.blocks[self.order[place]]
        return block.without_branch if isinstance(block, Block) else lambda x: x

    @contextmanager
    def taking(self, route: Mapping[int, Callable]) -> Iterator[None]:
        """Inside, the calls at these places go elsewhere."""
        self.route = route
        try:
            yield
        finally:
            self.route = {}
