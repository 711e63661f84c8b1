"""The pickle inside a PyTorch checkpoint, read by a machine that can do nothing else.

Python's own unpickler is not used, not even with its globals restricted: a few bytes make it allocate gigabytes for its
memo, nested tuples make it hash for ever, and ``BUILD`` writes into whatever object stands on its stack. This machine
knows the operations that ``torch.save`` writes for a state dict, and the three functions in `_CALLS`, all of them ours.
Everything else is refused, by name.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from llavakit.core.errors import FormatError

__all__ = ["Storage", "TensorDescription", "read_state_dict"]

_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive: its type, the name of its part, its length."""

    type_name: str
    key: str
    num_elements: int


@dataclass(frozen=True)
class TensorDescription:
    """A tensor as a window on a storage; offset and stride count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Global(NamedTuple):
    """A name that the pickle refers to."""

    module: str
    name: str


class _Refused(Exception):
    """What the pickle wants is not part of a state dict."""


_MARK = object()
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS = {"BINPUT", "LONG_BINPUT", "PUT"}
_GETS = {"BINGET", "LONG_BINGET", "GET"}


def read_state_dict(data: bytes, file_name: str) -> dict[str, TensorDescription]:
    """Read the tensors that a pickled state dict describes.

    Parameters
    ----------
    data : bytes
        The pickle.
    file_name : str
        For messages.

    Raises
    ------
    FormatError
        If the pickle is damaged, or asks for anything but tensors. Nothing of it has been run then either.
    """
    try:
        with warnings.catch_warnings():  # a damaged string may hold an escape that Python warns of
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", SyntaxWarning)
            content = _Machine(data).run()
    except _Refused as error:
        raise FormatError(
            f"{file_name} asks for {error}, which a file of weights has no business with. It was not run. Do not use "
            "this file; fetch the model from its source as safetensors."
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file_name}: its pickle is damaged ({error}). Fetch the model again.") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise FormatError(f"{file_name} holds {type(content).__name__}, a state dict is needed. Fetch the model again.")
    return {name: item for name, item in content.items() if isinstance(item, TensorDescription)}


class _Machine:
    """A stack, a memo, and one method per family of operations."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(self._data):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _PUTS:
                self._memo[int(argument)] = self._stack[-1]
            elif name in _GETS:
                self._stack.append(self._memo[int(argument)])
            elif name in _TUPLES:
                self._stack.append(tuple(self._pop_many(_TUPLES[name])))
            elif name not in ("PROTO", "FRAME"):
                self._other(name, argument)
        raise ValueError("it has no end")

    def _other(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_many(2) if name == "SETITEM" else self._pop_to_mark()
            _set_items(stack[-1], items)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_many(1) if name == "APPEND" else self._pop_to_mark()
            _check_type(stack[-1], list).extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            module, attribute = argument.split(" ", 1) if name == "GLOBAL" else self._pop_many(2)
            stack.append(_find_global(module, attribute))
        elif name == "REDUCE":
            function, arguments = self._pop_many(2)
            stack.append(_call(function, arguments))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "BUILD":  # the dict of a state dict has an attribute `_metadata`, which says nothing of tensors
            stack.pop()
            _check_type(stack[-1], dict)
        else:
            raise _Refused(f"the operation {name}")

    def _pop_many(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("an operation without its operands")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        if any(item is _MARK for item in items):
            raise ValueError("a mark where a value should be")
        return items

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise ValueError("a mark is missing")


def _check_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} where {kind.__name__} is needed")
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    _check_type(target, dict)
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only text is hashed: the hash of nested tuples can take for ever. A training state has other keys, further in.
        if isinstance(key, str):
            target[key] = value
        elif not isinstance(key, int):
            raise _Refused(f"a dict with a key of type {type(key).__name__}")


def _find_global(module: Any, name: Any) -> _Global:
    found = _Global(_check_type(module, str), _check_type(name, str))
    if found in _CALLS or (module == "torch" and name.endswith("Storage") and name.isidentifier()):
        return found
    raise _Refused(f"{module[:100]}.{name[:100]}")


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or function not in _CALLS:
        raise _Refused("a call of something that is no function")
    return _CALLS[function](*_check_type(arguments, tuple))


def _storage(pid: Any) -> Storage:
    kind, storage_type, key, _location, num_elements = _check_type(pid, tuple)
    if kind != "storage" or not isinstance(storage_type, _Global) or storage_type in _CALLS:
        raise ValueError("a storage of an unknown kind")
    return Storage(storage_type.name, _check_type(key, str), _check_type(num_elements, int))


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = _check_type(value, tuple)
    if len(sizes) > _MAX_DIMENSIONS or any(type(size) is not int for size in sizes):
        raise ValueError(f"a shape or stride that is not at most {_MAX_DIMENSIONS} whole numbers")
    return tuple(sizes)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorDescription:
    return TensorDescription(_check_type(storage, Storage), _check_type(offset, int), _sizes(shape), _sizes(stride))


def _parameter(data: Any, *_: Any) -> TensorDescription:
    return _check_type(data, TensorDescription)  # type: ignore[no-any-return]


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for pair in pairs if type(pairs) is list else _check_type(pairs, tuple):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise ValueError("a pair that is none")
        _set_items(content, list(pair))
    return content


_CALLS: dict[_Global, Callable[..., Any]] = {
    _Global("collections", "OrderedDict"): _ordered_dict,
    _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Global("torch._utils", "_rebuild_parameter"): _parameter,
}
