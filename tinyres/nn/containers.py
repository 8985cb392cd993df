"""Containers: modules in a sequence or in a list, named "0", "1", ... in the state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinyres.nn.module import Module


class _Modules(Module):
    """A list of modules named "0", "1", ...: what Sequential and ModuleList share."""

    def _position(self, index: int) -> str:
        count = len(self._modules)
        if not hasattr(index, "__index__"):
            raise TypeError(f"{type(self).__name__}: an index must be an integer or a slice, got {index!r}: a name is "
                            "found by get_submodule()")
        if not -count <= index < count:
            raise IndexError(f"{type(self).__name__}: index {index} is out of range for {count} modules "
                             f"(from {-count} to {count - 1})")
        return list(self._modules)[index]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)._of(dict(list(self._modules.items())[index]))
        return self._modules[self._position(index)]

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> _Modules:
        raise TypeError(f"{cls.__name__} cannot be sliced")

    def __setitem__(self, index: int, module: Module) -> None:
        self.register_module(self._position(index), module)

    def append(self, module: Module) -> _Modules:
        """Add a module at the end; returns self."""
        self.register_module(str(len(self._modules)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> _Modules:
        """Add modules at the end; returns self."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Modules):
    """Modules applied one after the other, given as arguments or as one mapping from names to modules."""

    def __init__(self, *modules: Module | Mapping[str, Module]):
        super().__init__()
        named = modules[0] if len(modules) == 1 and isinstance(modules[0], Mapping) else None
        for name, module in (named.items() if named is not None else enumerate(modules)):
            self.register_module(str(name), module)  # type: ignore[arg-type]

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> Sequential:
        return Sequential(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x


class ModuleList(_Modules):
    """A list of modules that a network calls by itself; unlike a plain list it registers them."""

    def forward(self, *args: Any) -> Any:
        raise NotImplementedError("ModuleList has no forward: call its modules one by one, or use Sequential")

    def __init__(self, modules: Iterable[Module] = ()):
        super().__init__()
        self.extend(modules)

    @classmethod
    def _of(cls, modules: Mapping[str, Module]) -> ModuleList:
        return ModuleList(modules.values())
