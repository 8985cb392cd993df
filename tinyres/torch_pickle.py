"""What a PyTorch pickle says, told without doing what it says.

A pickle is a program for a stack machine: push this text, call that function with what is on the stack. Python's own
machine finds any function by its name and calls it, so whoever writes the file runs code here. The machine of this file
knows no functions. It takes the instructions that `pickletools` decodes, those of a whitelist only, and builds dicts,
lists, tuples and numbers; where the program would call PyTorch to make a tensor, it writes down which bytes the tensor
would have. Any other name, and any other instruction, ends it with an error. See tinyres/torch_file.py for the bytes.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST = 500_000  # instructions; resnet1202 with the momentum of its optimizer has 264,352
LARGEST = 1 << 62  # bytes or elements: what no file holds
DEEPEST = 32  # dimensions that NumPy of any version has, and more arguments than any function here takes

# The elements of a storage, as NumPy writes their type; bfloat16, which NumPy lacks, as "bf".
STORAGES = {f"torch.{name}Storage": kind for name, kind in {
    "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf", "Long": "i8", "Int": "i4", "Short": "i2",
    "Char": "i1", "Byte": "u1", "Bool": "?"}.items()} | {"torch.storage.UntypedStorage": "u1"}
DTYPES = {"torch.float32": "f4", "torch.float64": "f8", "torch.float16": "f2", "torch.bfloat16": "bf",
          "torch.int64": "i8", "torch.int32": "i4", "torch.int16": "i2", "torch.int8": "i1", "torch.uint8": "u1",
          "torch.bool": "?", "torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8"}
CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")  # what a tensor may be made as


class Refused(ValueError):
    """A pickle that says more, or other things, than which tensors there are. One that is damaged is a ValueError."""


@dataclass(frozen=True)
class Name:
    """A global: a class or function by its name. It is never looked up."""

    text: str


@dataclass(frozen=True)
class Storage:
    """`count` elements of `kind` (a value of STORAGES) from the element `offset` on in the storage `key`."""

    key: str
    kind: str
    count: int
    offset: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's elements are: the first at `offset` in the storage, the next along axis i `strides[i]` further.

    All of them lie within the storage, and shape and strides are small enough for NumPy.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def itemsize(kind: str) -> int:
    """Bytes of an element of a storage."""
    return 1 if kind == "?" else 2 if kind == "bf" else int(kind[1])


@dataclass(frozen=True)
class Told:
    """What a pickle holds, where it ends, and all storages that it speaks of, whole, by their keys.

    Dicts keep only what stands under texts, so an optimizer's state, which is numbered, is passed over; its storages
    are not.
    """

    value: Any
    end: int
    storages: dict[str, Storage]


def read_pickle(content: bytes, begin: int = 0) -> Told:
    """What the pickle that begins at `begin` says.

    Raises Refused for a global or an instruction that is not on the whitelists, and ValueError for a pickle that is
    truncated or damaged.
    """
    machine = _Machine()
    value, end = machine.run(content, begin)
    return Told(value, end, machine.storages)


# --- the globals that stand for a call --------------------------------------------------------------------------------


def _dict(pairs: Any = ()) -> dict[str, Any]:
    """collections.OrderedDict, which Python 2 gives its items when it is made."""
    found: dict[str, Any] = {}
    _need(isinstance(pairs, list) or pairs == (), "an OrderedDict is made from something else than a list")
    for pair in pairs:
        _need(isinstance(pair, (list, tuple)) and len(pair) == 2, "an OrderedDict is made from no pairs")
        if isinstance(pair[0], str):
            found[pair[0]] = pair[1]
    if pairs:
        pairs.clear()  # else few instructions could copy a long list often, and fill the memory
    return found


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any = False, hooks: Any = None,
            metadata: Any = None) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2; metadata says that the values are to be negated or conjugated."""
    _need(isinstance(storage, Storage), "a tensor is made from something that is no storage")
    _need(not metadata, "a tensor is a negated or conjugated view: save tensor.resolve_neg().resolve_conj()")
    _need(isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= DEEPEST,
          f"a tensor has no shape and strides of the same length, at most {DEEPEST}")
    for number in (offset, *shape, *strides):
        _need(type(number) is int and 0 <= number < LARGEST, "a tensor's offset, shape or stride is no number that "
              "can be")
    _need(math.prod(max(size, 1) for size in shape) < LARGEST >> 4, f"a tensor of shape {shape} is larger than any")
    if 0 not in shape:
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        _need(last < storage.count, f"a tensor of shape {shape}, strides {strides} and offset {offset} reaches beyond "
              f"its storage of {storage.count} elements")
    # An axis along which no step is taken may have any stride, also one that NumPy cannot count in bytes.
    strides = tuple(0 if size < 2 or 0 in shape else stride for size, stride in zip(shape, strides, strict=True))
    return StoredTensor(storage, offset, shape, strides)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
               metadata: Any = None) -> StoredTensor:
    """torch._utils._rebuild_tensor_v3: the storage is bytes, the tensor says of which type."""
    _need(isinstance(storage, Storage) and isinstance(dtype, Name) and dtype.text in DTYPES,
          "a tensor is made from something that is no storage, or of a type that NumPy does not have")
    kind = DTYPES[dtype.text]
    length, begin = (number * itemsize(storage.kind) for number in (storage.count, storage.offset))
    _need(begin % itemsize(kind) == 0, "a tensor is made from a view that begins within one of its elements")
    part = Storage(storage.key, kind, length // itemsize(kind), begin // itemsize(kind))
    return _tensor(part, offset, shape, strides, requires_grad, hooks, metadata)


def _parameter(data: Any, *others: Any) -> StoredTensor:
    """torch._utils._rebuild_parameter: the tensor itself."""
    _need(isinstance(data, StoredTensor), "a parameter is made from something that is no tensor")
    return data


def _of_class(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes, which are passed over."""
    _need(isinstance(kind, Name) and kind.text in CLASSES, "a tensor is of a class of its own")
    _need(isinstance(function, Name) and function.text.startswith("torch._utils."), "a tensor is made by no function "
          "that makes one")  # and not by this one, again and again
    return _call(function, arguments)


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    _need(isinstance(numbers, (tuple, list)) and len(numbers) <= DEEPEST, "a torch.Size is made from no short tuple")
    return tuple(numbers)


def _device(*words: Any) -> None:
    """torch.device: where the tensor was does not matter here."""


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch.Size": _size,
    "torch.device": _device,
}
NAMES = {*CALLS, *STORAGES, *DTYPES, *CLASSES}


def _call(function: Any, arguments: Any) -> Any:
    _need(isinstance(function, Name) and function.text in CALLS, "it calls what is no function")
    _need(isinstance(arguments, tuple) and len(arguments) <= DEEPEST,  # as a long one would be copied at each call
          f"{function.text} is called without a tuple of at most {DEEPEST} arguments")
    try:
        return CALLS[function.text](*arguments)
    except TypeError as error:  # of another number of arguments
        raise Refused(f"{function.text} is called with {len(arguments)} arguments, which it does not take") from error


def _need(holds: bool, otherwise: str, kind: type[ValueError] = Refused) -> None:
    if not holds:
        raise kind(otherwise)


# --- the machine ------------------------------------------------------------------------------------------------------

PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
          "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES"}
MADE: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None, "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Machine:
    """The stack, the stacks below the marks, and what was numbered to be used again."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def run(self, content: bytes, begin: int) -> tuple[Any, int]:
        stream = io.BytesIO(content)
        stream.seek(begin)
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            _need(count < LONGEST, f"it has more than {LONGEST:,} instructions: save the state dict alone")
            if code.name == "STOP":
                return self.pop(), stream.tell()
            self.step(code.name, argument)
        raise ValueError("its pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        if name in PUSHED:
            self.stack.append(argument)
        elif name in MADE:
            self.stack.append(MADE[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            _need(argument in self.memo, f"its pickle uses object {argument}, which it never made", ValueError)
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in TUPLES:
            self.stack.append(tuple(reversed([self.pop() for _ in range(TUPLES[name])])))
        elif name in ("TUPLE", "LIST"):
            items = self.since_mark()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("APPEND", "APPENDS"):
            items = self.since_mark() if name == "APPENDS" else [self.pop()]
            _need(isinstance(self.top(), list), "it appends to what is no list")
            self.top().extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.since_mark() if name == "SETITEMS" else [self.pop(), self.pop()][::-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self.name_of(argument, name == "STACK_GLOBAL")
        elif name == "BINPERSID":
            whole, part = _storage(self.pop())
            _need(self.storages.setdefault(whole.key, whole) == whole, "a storage has two types or sizes")
            self.stack.append(part)
        elif name == "REDUCE":
            arguments = self.pop()
            self.stack.append(_call(self.pop(), arguments))
        elif name == "BUILD":  # of an OrderedDict's attributes, which a state dict has
            self.pop()
            _need(isinstance(self.top(), (dict, StoredTensor)), "it sets attributes of what is no dict")
        else:
            _need(name in ("PROTO", "FRAME"), f"it has the instruction {name}, which no file of tensors needs")

    def pop(self) -> Any:
        _need(bool(self.stack), "its pickle takes from an empty stack", ValueError)
        return self.stack.pop()

    def top(self) -> Any:
        _need(bool(self.stack), "its pickle takes from an empty stack", ValueError)
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        _need(bool(self.below), "its pickle has no mark where it needs one", ValueError)
        items, self.stack = self.stack, self.below.pop()
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        _need(isinstance(target, dict) and len(items) % 2 == 0, "it sets items of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):  # only: other keys could be made such that comparing them takes forever
                target[key] = value

    def name_of(self, argument: Any, on_stack: bool) -> None:
        if on_stack:
            name, module = self.pop(), self.pop()
            _need(isinstance(module, str) and isinstance(name, str), "it names a global by what is no text")
        else:
            module, name = argument.split(" ", 1)
        text = f"{module}.{name}"
        text = text.replace("torch.cuda.", "torch.", 1) if text.startswith("torch.cuda.") else text
        _need(text in NAMES, f"it asks for {text[:200]!r}, which is no part of a state dict")
        self.stack.append(Name(text))


def _storage(identity: Any) -> tuple[Storage, Storage]:
    """The storage and the part of it that is meant, which only the legacy format tells apart.

    identity: ("storage", type, key, device, elements) and, there, a view (key, offset, elements) or None.
    """
    _need(isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage",
          "it holds an object other than tensors")
    _, kind, key, _, count, *view = identity
    _need(isinstance(kind, Name) and kind.text in STORAGES, "a storage is of a type that NumPy does not have")
    _need(isinstance(key, str) and isinstance(count, int) and 0 <= count < LARGEST >> 4,
          "a storage has no key or no number of elements")
    whole = Storage(key, STORAGES[kind.text], count)
    if not view or view[0] is None:
        return whole, whole
    _need(isinstance(view[0], tuple) and len(view[0]) == 3, "a storage is no view that can be")
    _, offset, length = view[0]
    _need(all(isinstance(n, int) and 0 <= n <= count for n in (offset, length)) and offset + length <= count,
          "a storage is a view that reaches beyond the storage")
    return whole, Storage(key, whole.kind, length, offset)
