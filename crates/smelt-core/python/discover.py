"""Ask mlx-lm or mlx-vlm itself what it does to the tensors of a checkpoint.

smelt embeds this file and runs it with the user's own Python.  The library's real
`load_model` runs on stand-ins that know a shape and a dtype but hold no data, and every
operation on a stand-in is taken down.  The result is a graph from source tensors to
parameters that smelt evaluates by itself, in bounded memory.  Tracing the real function
keeps every rule of every model family where it is maintained: in the library.

Two seams carry it: `mx.load` hands out the stand-ins, and `nn.Module.load_weights` is where
the run ends.  In between, all functions of `mlx.core` are wrapped; a call without stand-ins
goes straight through.  Shapes, dtypes and errors come from MLX, which is asked the same
question about lazy arrays of zeros that are never evaluated.

An operation without a name in smelt's format becomes a `call` node.  smelt refuses those, so
what this file does not know costs coverage, never a wrong weight.

Input: one JSON object on stdin.
    library   "mlx-lm" or "mlx-vlm"
    config    config.json, parsed
    files     {file: {tensor: [safetensors dtype, shape]}}
    index     whether the checkpoint has an index file
    side      {name: text} of the small JSON files that load_model may read
    metadata  {file: {key: value}}, optional, the shards' `__metadata__`
Output: one JSON object on stdout; what the library prints goes to stderr.
A failure of the library is an answer (`error`), not an exit code.
"""
# ruff: noqa: E402

from __future__ import annotations

import sys

# The working directory may be the checkpoint itself, and a checkpoint's code is never run.
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]

import base64
import functools
import gc
import importlib
import importlib.metadata
import json
import math
import os
import struct
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

VERSION = 1
LITERAL_LIMIT = 16 << 20
PACKAGES = {"mlx-lm": "mlx_lm", "mlx-vlm": "mlx_vlm"}
INDEX_NAME = "model.safetensors.index.json"
# Keys by which a config names Python files of the checkpoint; some config classes insist on an
# `auto_map`, so that one stays, empty.
CODE_KEYS = {"model_file", "trust_remote_code"}
NETWORK_EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}

# MLX's dtypes in the spelling of safetensors headers.
SPELLING = {
    "bool_": "BOOL", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16",
    "bfloat16": "BF16", "float32": "F32", "float64": "F64", "complex64": "C64",
}  # fmt: skip

Shape = tuple[int, ...]
Attributes = tuple[tuple[str, Any], ...]


class ValueDependent(RuntimeError):
    """The library asked for the value of a tensor, which does not exist here."""


class Untraceable(RuntimeError):
    """The library used a tensor in a way that has no place in the graph."""


class Refused(OSError):
    """The library tried to reach the network."""


class Captured(BaseException):
    """Ends the run at `load_weights`; not an Exception, so that no library swallows it."""

    def __init__(self, model: Any, weights: dict[str, Any]) -> None:
        super().__init__("load_weights")
        self.model = model
        self.weights = weights


# ---------------------------------------------------------------------------------------
# Nodes and stand-ins
# ---------------------------------------------------------------------------------------


class Node:
    """One operation: what it reads, its attributes, and the shape and dtype it yields."""

    __slots__ = ("attributes", "dtype", "inputs", "op", "shape")

    def __init__(
        self, op: str, inputs: tuple[Node, ...], attributes: Attributes, dtype: str, shape: Shape
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.attributes = attributes
        self.dtype = dtype
        self.shape = shape


class Proxy:
    """Stands for an `mx.array` in the library's code.

    It holds one node and is mutable, because MLX's in-place operators change an array for
    everybody who holds it.
    """

    __slots__ = ("__weakref__", "node")
    # NumPy's own operators must leave `numpy_array * proxy` to the methods below.
    __array_ufunc__ = None

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def __class__(self) -> type:
        """Makes `isinstance(value, mx.array)` hold."""
        return RECORDER.array_type

    shape = property(lambda self: self.node.shape)
    ndim = property(lambda self: len(self.node.shape))
    size = property(lambda self: math.prod(self.node.shape))
    dtype = property(lambda self: RECORDER.dtypes[self.node.dtype])
    itemsize = property(lambda self: self.dtype.size)
    nbytes = property(lambda self: self.size * self.itemsize)
    T = property(lambda self: RECORDER.call("transpose", (self,), {}))
    mT = property(lambda self: RECORDER.call("swapaxes", (self, -1, -2), {}))

    def __hash__(self) -> int:
        return id(self)

    def __len__(self) -> int:
        if not self.node.shape:
            raise TypeError("len() of a 0-d array")
        return self.node.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"array({self.node.op}, shape={self.node.shape}, dtype={self.node.dtype})"

    def __copy__(self) -> Proxy:
        return Proxy(self.node)

    def __deepcopy__(self, memo: dict[int, Any]) -> Proxy:
        return Proxy(self.node)

    def __getitem__(self, index: Any) -> Any:
        return RECORDER.index(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        RECORDER.assign(self, index, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(RECORDER.array_type, name):
            raise AttributeError(f"'array' object has no attribute '{name}'")
        return functools.partial(RECORDER.method, name, self)

    def __bool__(self) -> bool:
        raise no_value(self, "its truth")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise no_value(self, "its bytes")

    def __neg__(self) -> Any:
        return RECORDER.call("negative", (self,), {})

    def __abs__(self) -> Any:
        return RECORDER.call("abs", (self,), {})

    def __invert__(self) -> Any:
        return RECORDER.call("bitwise_invert", (self,), {})

    item = tolist = __float__ = __int__ = __index__ = __dlpack__ = __array__


def no_value(proxy: Proxy, what: str) -> ValueDependent:
    """The error for code that wants `what` of a tensor; it names the sources."""
    names = [attributes_of(n)["name"] for n in ordered([proxy.node]) if n.op == "source"]
    return ValueDependent(f"the library asks for {what}: a tensor made of {', '.join(names[:4])}")


OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "div": "divide",
    "pow": "power", "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
    "matmul": "matmul",
}  # fmt: skip
COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
    "ne": "not_equal",
}  # fmt: skip


def define_operators(name: str, function: str) -> None:
    """Gives Proxy `x op y`, `y op x` and `x op= y`."""

    def forward(self: Proxy, other: Any) -> Any:
        return RECORDER.call(function, (self, other), {})

    def reflected(self: Proxy, other: Any) -> Any:
        return RECORDER.call(function, (other, self), {})

    def in_place(self: Proxy, other: Any) -> Proxy:
        self.node = RECORDER.call(function, (self, other), {}).node
        return self

    setattr(Proxy, f"__{name}__", forward)
    if name in OPERATORS:
        setattr(Proxy, f"__r{name}__", reflected)
        setattr(Proxy, f"__i{name}__", in_place)


for _name, _function in {**OPERATORS, **COMPARISONS}.items():
    define_operators(_name, _function)


def holds_proxy(value: Any) -> bool:
    """Whether a stand-in is in `value`, at any depth of lists, tuples and dicts."""
    kind = type(value)
    if kind is Proxy:
        return True
    if kind is tuple or kind is list:
        return any(map(holds_proxy, value))
    if kind is dict:
        return any(map(holds_proxy, value.values()))
    return False


# ---------------------------------------------------------------------------------------
# The recorder: what an operation on stand-ins becomes
# ---------------------------------------------------------------------------------------

# MLX function -> op of the graph, for operands brought to one dtype first.
BINARY = {
    "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide",
    "maximum": "maximum", "minimum": "minimum", "left_shift": "left_shift",
    "right_shift": "right_shift", "bitwise_and": "and", "bitwise_or": "or",
}  # fmt: skip
COMPARE = frozenset(COMPARISONS.values())
UNARY = frozenset({
    "negative", "floor", "ceil", "sqrt", "rsqrt", "log", "log2", "exp", "sigmoid", "abs",
    "square", "reciprocal", "sin", "cos", "tanh", "sign", "isnan", "isinf", "logical_not",
})  # fmt: skip
RESHAPES = frozenset({
    "reshape", "flatten", "unflatten", "squeeze", "expand_dims", "atleast_1d", "atleast_2d",
    "atleast_3d",
})  # fmt: skip
SAME = frozenset({"contiguous", "stop_gradient", "array.__copy__"})
# (group size, bits) that mx.quantize takes when none are given.
QUANTIZE_DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


class Recorder:
    """Turns operations on stand-ins into hash-consed nodes."""

    def __init__(self, mx: Any) -> None:
        self.mx = mx
        self.array_type = mx.array
        # The unwrapped functions of mlx.core, and array methods as `array.<name>`.
        self.real: dict[str, Callable[..., Any]] = {}
        self.dtypes = {s: getattr(mx, d) for d, s in SPELLING.items() if hasattr(mx, d)}
        self.spelling = {dtype: name for name, dtype in self.dtypes.items()}
        self.nodes: dict[tuple[Any, ...], Node] = {}
        self.zeros: dict[tuple[Shape, str], Any] = {}
        self.scalars: dict[tuple[Any, ...], Node] = {}

    # -- nodes --------------------------------------------------------------------------

    def node(
        self, op: str, inputs: tuple[Node, ...], dtype: str, shape: Shape, *attributes: Any
    ) -> Node:
        """The one node of this description; `attributes` are (name, value) pairs."""
        key = (op, dtype, shape, attributes, tuple(map(id, inputs)))
        found = self.nodes.get(key)
        if found is None:
            found = self.nodes[key] = Node(op, inputs, attributes, dtype, shape)
        return found

    def lazy(self, node: Node) -> Any:
        """A real, never evaluated array of the node's shape and dtype."""
        key = (node.shape, node.dtype)
        found = self.zeros.get(key)
        if found is None:
            dtype = self.dtypes[node.dtype]
            found = self.zeros[key] = self.real["zeros"](node.shape, dtype)
        return found

    def ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What MLX makes of these arguments: shape and dtype of the result, or its error."""
        positional = [self.lazily(value) for value in args]
        return self.real[name](*positional, **{k: self.lazily(v) for k, v in kwargs.items()})

    def lazily(self, value: Any) -> Any:
        """`value` with lazy arrays for its stand-ins, at any depth of lists, tuples and dicts."""
        kind = type(value)
        if kind is Proxy:
            return self.lazy(value.node)
        if kind is tuple or kind is list:
            return kind([self.lazily(v) for v in value])
        return {k: self.lazily(v) for k, v in value.items()} if kind is dict else value

    def like(self, result: Any) -> tuple[str, Shape]:
        return self.spelling[result.dtype], tuple(result.shape)

    def as_node(self, value: Any) -> Node:
        """The node of a stand-in, of an array the library made itself, or of a number."""
        if type(value) is Proxy:
            return value.node
        if isinstance(value, (bool, int, float)):
            return self.scalar(value, self.spelling[self.array_type(value).dtype])
        if not isinstance(value, self.array_type):
            value = self.array_type(value)
        return self.literal(value)

    def operand(self, value: Any, dtype: str) -> Node:
        """The node of `value` as `dtype`; Python numbers take the other operand's dtype."""
        if isinstance(value, (bool, int, float)) and type(value) is not Proxy:
            return self.scalar(value, dtype)
        return self.cast(self.as_node(value), dtype)

    def scalar(self, value: float, dtype: str) -> Node:
        # `repr` tells 1 from 1.0 and True, and 0.0 from -0.0.
        key = (repr(value), dtype)
        found = self.scalars.get(key)
        if found is None:
            rounded = self.array_type(value, self.dtypes[dtype]).item()
            attribute = ("value", number(rounded))
            found = self.scalars[key] = self.node("scalar", (), dtype, (), attribute)
        return found

    def literal(self, array: Any) -> Node:
        """An array the library made without the checkpoint; kept by value.

        It is read at once, because the library may change it in place afterwards.
        """
        dtype, shape = self.like(array)
        if array.nbytes > LITERAL_LIMIT or dtype == "C64":
            why = json.dumps([f"{array.nbytes} bytes of {dtype}"])
            return self.node("call", (), dtype, shape, ("fn", "literal"), ("args", why))
        if not shape:
            return self.node("scalar", (), dtype, (), ("value", number(array.item())))
        flat = self.real["reshape"](array, (-1,))
        data = bytes(memoryview(self.real["array.view"](flat, self.mx.uint8)))
        size = array.dtype.size
        if data and data == data[:size] * array.size:
            value = number(self.real["array.__getitem__"](flat, 0).item())
            return self.node("full", (), dtype, shape, ("value", value))
        return self.node("const", (), dtype, shape, ("data", data))

    def cast(self, node: Node, dtype: str) -> Node:
        return node if node.dtype == dtype else self.node("cast", (node,), dtype, node.shape)

    def reshape(self, node: Node, shape: Shape) -> Node:
        if node.op == "reshape":
            node = node.inputs[0]
        return node if node.shape == shape else self.node("reshape", (node,), node.dtype, shape)

    def transpose(self, node: Node, perm: Iterable[int]) -> Node:
        """Axis i of the result is axis perm[i]; two in a row become one."""
        perm = tuple(perm)
        if node.op == "transpose":
            inner = node.attributes[0][1]
            node, perm = node.inputs[0], tuple(inner[axis] for axis in perm)
        if perm == tuple(range(len(perm))):
            return node
        shape = tuple(node.shape[axis] for axis in perm)
        return self.node("transpose", (node,), node.dtype, shape, ("perm", perm))

    def slice(self, node: Node, ranges: list[range]) -> Node:
        """One range per axis."""
        lengths = tuple(map(len, ranges))
        if lengths == node.shape and all(r.step == 1 for r in ranges):
            return node
        attributes = (
            ("start", tuple(r.start for r in ranges)),
            ("len", lengths),
            ("step", tuple(r.step for r in ranges)),
        )
        return self.node("slice", (node,), node.dtype, lengths, *attributes)

    # -- calls --------------------------------------------------------------------------

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Entry of every wrapped function that met a stand-in."""
        kwargs.pop("stream", None)
        if not kwargs and len(args) == 2 and (name in BINARY or name in COMPARE):
            return self.binary(name, *args)
        if name in SAME:
            return Proxy(self.as_node(args[0]))
        if name in RESHAPES:
            return self.reshaped(name, args, kwargs)
        if not kwargs and len(args) == 1 and name in UNARY:
            return self.unary(name, *args)
        handler = getattr(self, "do_" + name.replace(".", "_"), None)
        if handler is not None and accepts(handler, args, kwargs):
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.generic(name, args, kwargs)

    def method(self, name: str, proxy: Proxy, *args: Any, **kwargs: Any) -> Any:
        """A method of `mx.array`: the function of the same name, but for the spread axes."""
        if name in ("reshape", "transpose") and args and not isinstance(args[0], (list, tuple)):
            args = (args,)
        if name in self.real or name == "astype":
            return self.call(name, (proxy, *args), kwargs)
        if callable(getattr(self.array_type, name)):
            return self.call(f"array.{name}", (proxy, *args), kwargs)
        raise Untraceable(f"the library uses `array.{name}`")

    def generic(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A `call` node, for what the graph has no op for."""
        result = self.ask(name, *args, **kwargs)
        inputs: list[Node] = []
        attributes = [("fn", name), ("args", json.dumps(self.encode(name, args, inputs)))]
        if kwargs:
            attributes.append(("kwargs", json.dumps(self.encode(name, kwargs, inputs))))
        single = isinstance(result, self.array_type)
        outputs = [result] if single else result
        if not isinstance(outputs, (list, tuple)):
            raise ValueDependent(f"`{name}` of a tensor is a plain value")
        call = self.node("call", tuple(inputs), *self.like(outputs[0]), *attributes)
        if single:
            return Proxy(call)
        return type(result)(self.pick(call, i, out) for i, out in enumerate(outputs))

    def pick(self, node: Node, index: int, result: Any) -> Proxy:
        return Proxy(self.node("get", (node,), *self.like(result), ("index", index)))

    def encode(self, name: str, value: Any, inputs: list[Node]) -> Any:
        """An argument as JSON; arrays become `{"in": position}`."""
        if value is None or (isinstance(value, (bool, int, str)) and type(value) is not Proxy):
            return value
        if isinstance(value, float):
            return number(value)
        if isinstance(value, (list, tuple)):
            return [self.encode(name, v, inputs) for v in value]
        if isinstance(value, dict):
            return {k: self.encode(name, v, inputs) for k, v in value.items()}
        if isinstance(value, slice):
            parts = [value.start, value.stop, value.step]
            return {"slice": self.encode(name, parts, inputs)}
        if isinstance(value, self.array_type):
            inputs.append(self.as_node(value))
            return {"in": len(inputs) - 1}
        if value is Ellipsis:
            return "..."
        if isinstance(value, self.mx.Dtype):
            return {"dtype": self.spelling[value]}
        raise Untraceable(f"`{name}` with an argument of type `{type(value).__name__}`")

    def binary(self, name: str, left: Any, right: Any) -> Any:
        a, b = self.known(left), self.known(right)
        dtype, shape = self.like(self.ask(name, a, b))
        if dtype != "BOOL" and (name == "divide" or (type(a) is type(b) and a.dtype == b.dtype)):
            common = dtype
        else:
            common = self.spelling[self.ask("add", a, b).dtype]
        if name not in COMPARE and dtype != common:
            return self.generic(name, (left, right), {})
        nodes = (self.operand(a, common), self.operand(b, common))
        if name in COMPARE:
            return Proxy(self.node("compare", nodes, "BOOL", shape, ("fn", name)))
        return Proxy(self.node(BINARY[name], nodes, dtype, shape))

    def known(self, value: Any) -> Any:
        """Stand-ins, numbers and arrays as they are; NumPy's as MLX's."""
        plain = (bool, int, float, self.array_type)
        return value if isinstance(value, plain) else self.array_type(value)

    def unary(self, name: str, value: Any) -> Any:
        dtype, shape = self.like(self.ask(name, value))
        node = value.node
        # MLX computes e.g. the sqrt of integers in the float dtype of its result.
        if dtype != "BOOL":
            node = self.cast(node, dtype)
        return Proxy(self.node("unary", (node,), dtype, shape, ("fn", name)))

    def reshaped(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.ask(name, *args, **kwargs)
        if not isinstance(result, self.array_type) or type(args[0]) is not Proxy:
            return self.generic(name, args, kwargs)
        return Proxy(self.reshape(args[0].node, tuple(result.shape)))

    # -- indexing -----------------------------------------------------------------------

    def index(self, array: Any, index: Any) -> Any:
        """`array[index]`; one or both are stand-ins."""
        if type(array) is Proxy:
            basic = basic_index(array.node.shape, index)
            if basic is not None:
                ranges, shape = basic
                return Proxy(self.reshape(self.slice(array.node, ranges), shape))
        if isinstance(index, self.array_type) and index.dtype != self.mx.bool_:
            return self.do_take(array, index, 0)
        return self.generic("array.__getitem__", (array, index), {})

    def assign(self, proxy: Proxy, index: Any, value: Any) -> None:
        """`proxy[index] = value`: everybody who holds the stand-in sees it."""
        node = proxy.node
        inputs: list[Node] = []
        args = self.encode("array.__setitem__", [proxy, index, value], inputs)
        attributes = (("fn", "array.__setitem__"), ("args", json.dumps(args)))
        proxy.node = self.node("call", tuple(inputs), node.dtype, node.shape, *attributes)

    # -- functions with an op of their own ----------------------------------------------
    # Named after the function, with MLX's parameter names; NotImplemented makes it a `call`.

    def do_stack(self, arrays: Any, axis: int = 0) -> Any:
        first = arrays[0].node if arrays and type(arrays[0]) is Proxy else None
        rank = len(first.shape) + 1 if first else 0
        if -rank <= axis < rank and all(
            type(a) is Proxy and a.node.shape == first.shape and a.node.dtype == first.dtype
            for a in arrays
        ):
            # Experts are most of a checkpoint; this spares MLX a list of lazy arrays each.
            axis %= rank
            shape = (*first.shape[:axis], len(arrays), *first.shape[axis:])
            nodes = tuple(a.node for a in arrays)
            return Proxy(self.node("stack", nodes, first.dtype, shape, ("axis", axis)))
        return self.join("stack", arrays, axis)

    def do_concatenate(self, arrays: Any, axis: int | None = 0) -> Any:
        return NotImplemented if axis is None else self.join("concatenate", arrays, axis)

    do_concat = do_concatenate

    def join(self, name: str, arrays: Any, axis: int) -> Any:
        dtype, shape = self.like(self.ask(name, list(arrays), axis))
        nodes = tuple(self.operand(a, dtype) for a in arrays)
        op = "stack" if name == "stack" else "concat"
        if op == "concat" and len(nodes) == 1:
            return Proxy(nodes[0])
        return Proxy(self.node(op, nodes, dtype, shape, ("axis", axis % len(shape))))

    def do_split(self, a: Any, indices_or_sections: Any, axis: int = 0) -> Any:
        parts = self.ask("split", a, indices_or_sections, axis)
        node, start, pieces = self.as_node(a), 0, []
        for part in parts:
            ranges = [range(size) for size in node.shape]
            ranges[axis] = range(start, start + part.shape[axis])
            start += part.shape[axis]
            pieces.append(Proxy(self.slice(node, ranges)))
        return pieces

    def do_transpose(self, a: Any, axes: Any = None) -> Any:
        node = self.as_node(a)
        rank = len(node.shape)
        perm = [axis % rank for axis in axes] if axes else list(range(rank))[::-1]
        if sorted(perm) != list(range(rank)):
            return NotImplemented
        return Proxy(self.transpose(node, perm))

    do_permute_dims = do_transpose

    def do_swapaxes(self, a: Any, axis1: int, axis2: int) -> Any:
        node = self.as_node(a)
        perm = list(range(len(node.shape)))
        if not (in_rank(axis1, perm) and in_rank(axis2, perm)):
            return NotImplemented
        perm[axis1], perm[axis2] = perm[axis2], perm[axis1]
        return Proxy(self.transpose(node, perm))

    def do_moveaxis(self, a: Any, source: int, destination: int) -> Any:
        node = self.as_node(a)
        perm = list(range(len(node.shape)))
        if not (in_rank(source, perm) and in_rank(destination, perm)):
            return NotImplemented
        rank = len(perm)
        perm.insert(destination % rank, perm.pop(source % rank))
        return Proxy(self.transpose(node, perm))

    def do_astype(self, a: Any, dtype: Any) -> Any:
        return Proxy(self.cast(a.node, self.spelling[dtype]))

    def do_view(self, a: Any, dtype: Any) -> Any:
        node, name = self.as_node(a), self.spelling[dtype]
        if node.dtype == name:
            return Proxy(node)
        return Proxy(self.node("bitcast", (node,), *self.like(self.ask("view", a, dtype))))

    def do_from_fp8(self, x: Any, dtype: Any = None) -> Any:
        result = self.ask("from_fp8", x) if dtype is None else self.ask("from_fp8", x, dtype)
        return Proxy(self.node("from_fp8", (self.as_node(x),), *self.like(result)))

    def do_zeros_like(self, a: Any) -> Any:
        return self.real["zeros"](a.shape, a.dtype)

    def do_ones_like(self, a: Any) -> Any:
        return self.real["ones"](a.shape, a.dtype)

    def do_clip(self, a: Any, a_min: Any, a_max: Any) -> Any:
        # MLX defines it so, maximum first.
        if a_min is not None:
            a = self.call("maximum", (a, a_min), {})
        return a if a_max is None else self.call("minimum", (a, a_max), {})

    def do_where(self, condition: Any, x: Any, y: Any) -> Any:
        dtype, shape = self.like(self.ask("where", condition, x, y))
        nodes = (self.operand(condition, "BOOL"), self.operand(x, dtype), self.operand(y, dtype))
        return Proxy(self.node("where", nodes, dtype, shape))

    def do_take(self, a: Any, indices: Any, axis: int | None = None) -> Any:
        if axis is None or isinstance(indices, int):
            return NotImplemented
        dtype, shape = self.like(self.ask("take", a, indices, axis))
        nodes = (self.as_node(a), self.as_node(indices))
        axis %= len(nodes[0].shape)
        return Proxy(self.node("take", nodes, dtype, shape, ("axis", axis)))

    def do_repeat(self, array: Any, repeats: int, axis: int | None = None) -> Any:
        if axis is None:
            return NotImplemented
        dtype, shape = self.like(self.ask("repeat", array, repeats, axis))
        attributes = (("axis", axis % len(shape)), ("count", repeats))
        return Proxy(self.node("repeat", (self.as_node(array),), dtype, shape, *attributes))

    def do_broadcast_to(self, a: Any, shape: Any) -> Any:
        node, result = self.as_node(a), self.ask("broadcast_to", a, shape)
        if node.shape == tuple(result.shape):
            return Proxy(node)
        return Proxy(self.node("broadcast", (node,), *self.like(result)))

    def do_pad(
        self, a: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0
    ) -> Any:
        node = self.as_node(a)
        widths = pad_widths(pad_width, len(node.shape))
        if mode != "constant" or isinstance(constant_values, self.array_type) or widths is None:
            return NotImplemented
        dtype, shape = self.like(self.ask("pad", a, pad_width, mode, constant_values))
        if shape == node.shape:
            return Proxy(node)
        low, high = zip(*widths, strict=True)
        value = dict(self.scalar(constant_values, dtype).attributes)["value"]
        attributes = (("low", low), ("high", high), ("value", value))
        return Proxy(self.node("pad", (node,), dtype, shape, *attributes))

    def do_matmul(self, a: Any, b: Any) -> Any:
        nodes = (self.as_node(a), self.as_node(b))
        dtype, shape = self.like(self.ask("matmul", a, b))
        if len(nodes[0].shape) != 2 or len(nodes[1].shape) != 2:
            return NotImplemented
        return Proxy(self.node("matmul", tuple(self.cast(n, dtype) for n in nodes), dtype, shape))

    def do_sum(self, a: Any, axis: Any = None, keepdims: bool = False) -> Any:
        dtype, shape = self.like(self.ask("sum", a, axis, keepdims))
        node = self.as_node(a)
        attributes = (("axes", axes_of(axis, node)), ("keepdims", keepdims))
        return Proxy(self.node("sum", (node,), dtype, shape, *attributes))

    def do_linalg_norm(
        self, a: Any, ord: Any = None, axis: Any = None, keepdims: bool = False
    ) -> Any:
        dtype, shape = self.like(self.ask("linalg.norm", a, ord, axis, keepdims))
        node = self.as_node(a)
        power = number(ord) if isinstance(ord, float) else ord
        attributes = (("axes", axes_of(axis, node)), ("keepdims", keepdims), ("ord", power))
        return Proxy(self.node("norm", (node,), dtype, shape, *attributes))

    def do_quantize(
        self, w: Any, group_size: int | None = None, bits: int | None = None, mode: str = "affine"
    ) -> Any:
        parts = self.ask("quantize", w, group_size, bits, mode)
        attributes = quantization(mode, bits, group_size)
        node = self.node("quantize", (self.as_node(w),), *self.like(parts[0]), *attributes)
        return tuple(self.pick(node, i, part) for i, part in enumerate(parts))

    def do_dequantize(
        self,
        w: Any,
        scales: Any,
        biases: Any = None,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        global_scale: Any = None,
        dtype: Any = None,
    ) -> Any:
        if global_scale is not None:
            return NotImplemented
        result = self.ask("dequantize", w, scales, biases, group_size, bits, mode, dtype=dtype)
        arrays = [w, scales] if biases is None else [w, scales, biases]
        nodes = tuple(map(self.as_node, arrays))
        attributes = quantization(mode, bits, group_size)
        return Proxy(self.node("dequantize", nodes, *self.like(result), *attributes))


def accepts(handler: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the handler knows all these arguments (MLX may have more than it)."""
    code = handler.__func__.__code__
    known = code.co_varnames[1 : code.co_argcount]
    return len(args) <= len(known) and all(name in known for name in kwargs)


def number(value: Any) -> Any:
    """A JSON number; JSON has none for NaN and the infinities, which become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def in_rank(axis: Any, axes: list[int]) -> bool:
    return isinstance(axis, int) and -len(axes) <= axis < len(axes)


def axes_of(axis: Any, node: Node) -> tuple[int, ...]:
    """Reduced axes, counted from the front; None means all."""
    rank = len(node.shape)
    if axis is None:
        return tuple(range(rank))
    return tuple(a % rank for a in ([axis] if isinstance(axis, int) else axis))


def quantization(mode: str, bits: int | None, group_size: int | None) -> Attributes:
    default_group, default_bits = QUANTIZE_DEFAULTS.get(mode, (None, None))
    return (
        ("mode", mode),
        ("bits", bits or default_bits),
        ("group_size", group_size or default_group),
    )


def pad_widths(width: Any, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) for each axis, from the four spellings that mx.pad takes."""
    if isinstance(width, int):
        return [(width, width)] * rank
    if len(width) == 2 and all(isinstance(w, int) for w in width):
        return [tuple(width)] * rank
    pairs = [tuple(w) for w in width if isinstance(w, (list, tuple)) and len(w) == 2]
    if len(pairs) != len(width):
        return None
    return pairs * rank if len(pairs) == 1 else pairs


def basic_index(shape: Shape, index: Any) -> tuple[list[range], Shape] | None:
    """An index of integers, slices, None and `...` as a range per axis and the final shape.

    None for every other index, and for one out of bounds, where MLX decides.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is not None and p is not Ellipsis and type(p) not in (int, slice) for p in parts):
        return None
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        named = sum(p is not None for p in parts) - 1
        parts[at : at + 1] = [slice(None)] * (len(shape) - named)
    ranges: list[range] = []
    result: list[int] = []
    for part in parts:
        if part is None:
            result.append(1)
            continue
        if len(ranges) == len(shape):
            return None
        size = shape[len(ranges)]
        if type(part) is int:
            if not -size <= part < size:
                return None
            ranges.append(range(part % size, part % size + 1))
        elif any(type(v) not in (int, type(None)) for v in (part.start, part.stop, part.step)):
            return None
        else:
            ranges.append(range(size)[part])
            result.append(len(ranges[-1]))
    rest = shape[len(ranges) :]
    return ranges + [range(size) for size in rest], (*result, *rest)


RECORDER: Recorder = None  # type: ignore[assignment]  # set by `record`


# ---------------------------------------------------------------------------------------
# The seams
# ---------------------------------------------------------------------------------------


class Shards:
    """The checkpoint's files as the library sees them: names, shapes and dtypes, no data."""

    def __init__(self, root: Path, request: dict[str, Any]) -> None:
        self.root = root
        self.files: dict[str, dict[str, Any]] = request["files"]
        self.metadata: dict[str, dict[str, str]] = request.get("metadata", {})
        self.unread = set(self.files)
        self.read_as: dict[str, Any] = {}
        names: dict[str, int] = {}
        for tensors in self.files.values():
            for name in tensors:
                names[name] = names.get(name, 0) + 1
        self.names = names

    def dtype(self, stored: str) -> Any:
        """What MLX reads a safetensors dtype as, or its error: both by loading no elements."""
        if stored not in self.read_as:
            probe = self.root / "probe.safetensors"
            header = {"x": {"dtype": stored, "shape": [0], "data_offsets": [0, 0]}}
            write_header(probe, header)
            try:
                self.read_as[stored] = RECORDER.real["load"](str(probe))["x"].dtype
            except RuntimeError as error:
                self.read_as[stored] = error
            probe.unlink()
        return self.read_as[stored]

    def place(self) -> None:
        """Writes shards without tensors, in the places where the library looks for them."""
        for file, tensors in self.files.items():
            header: dict[str, Any] = {"__metadata__": self.of(file)}
            for name, (stored, _) in tensors.items():
                # mlx-vlm rewrites the dtype in the header where MLX refuses it.
                if isinstance(self.dtype(stored), Exception):
                    header[name] = {"dtype": stored, "shape": [0], "data_offsets": [0, 0]}
            write_header(inside(self.root, file), header)

    def of(self, file: str) -> dict[str, str]:
        return self.metadata.get(file, {"format": "pt"})

    def load(self, file: Any, *args: Any, return_metadata: bool = False, **kwargs: Any) -> Any:
        """In place of `mx.load`."""
        path = Path(str(file))
        name = os.path.relpath(path.resolve(), self.root).replace(os.sep, "/")
        if name not in self.files:
            return RECORDER.real["load"](file, *args, return_metadata=return_metadata, **kwargs)
        self.unread.discard(name)
        rewritten = read_header(path)
        tensors = {}
        for tensor, (stored, shape) in self.files[name].items():
            seen = rewritten[tensor]["dtype"] if tensor in rewritten else stored
            tensors[tensor] = Proxy(self.source(name, tensor, stored, seen, shape))
        return (tensors, self.of(name)) if return_metadata else tensors

    def source(self, file: str, name: str, stored: str, seen: str, shape: list[int]) -> Node:
        dtype = self.dtype(seen)
        if isinstance(dtype, Exception):
            raise dtype
        attributes = (("name", name), ("stored", stored))
        if self.names[name] > 1:
            attributes += (("file", file),)
        return RECORDER.node("source", (), RECORDER.spelling[dtype], tuple(shape), *attributes)


def read_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def write_header(path: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def inside(root: Path, name: str) -> Path:
    """The path of a file of the checkpoint; refuses one that leaves the directory."""
    path = (root / name).resolve()
    if root not in path.parents:
        raise Untraceable(f"the file name `{name}` leaves the checkpoint")
    return path


def record(mx: Any) -> None:
    """Wraps MLX; before the library is imported, which copies functions into its modules."""
    global RECORDER
    RECORDER = Recorder(mx)
    # Compiled functions take arrays only.
    mx.compile = lambda fun=None, *args, **kwargs: fun if callable(fun) else lambda f: f
    untouched = {"compile", "set_default_device", "default_device", "synchronize"}
    for prefix in ("", "linalg.", "fast.", "fft."):
        module = getattr(mx, prefix[:-1]) if prefix else mx
        for name in dir(module):
            function = getattr(module, name)
            plain = not callable(function) or isinstance(function, type)
            if plain or name.startswith("_") or (not prefix and name in untouched):
                continue
            RECORDER.real[prefix + name] = function
            setattr(module, name, wrapped(prefix + name, function))
    for name in ("eval", "async_eval"):
        setattr(mx, name, without_proxies(RECORDER.real[name]))
    wrap_array(mx.array)
    mx.array = copying(mx.array)


def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if holds_proxy(args) or (kwargs and holds_proxy(kwargs)):
            return RECORDER.call(name, args, kwargs)
        return function(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call


def without_proxies(function: Callable[..., Any]) -> Callable[..., Any]:
    """`mx.eval` for the real arrays alone: the library flushes its batches with it."""
    return lambda *args: function(*[a for a in args if not holds_proxy(a)])


def wrap_array(array: type) -> None:
    """`real_array op stand_in` fails inside MLX, so the operators of the type are wrapped."""
    for name in dir(array):
        if callable(getattr(array, name)):
            RECORDER.real[f"array.{name}"] = getattr(array, name)
    for name, function in {**OPERATORS, **COMPARISONS}.items():
        wrap_operator(array, f"__{name}__", lambda a, b, f=function: RECORDER.call(f, (a, b), {}))
        if name in OPERATORS:
            wrap_operator(
                array, f"__r{name}__", lambda a, b, f=function: RECORDER.call(f, (b, a), {})
            )
            wrap_operator(array, f"__i{name}__", refuse_mutation)
    wrap_operator(array, "__getitem__", lambda a, index: RECORDER.index(a, index))
    wrap_operator(array, "__setitem__", refuse_mutation)


def copying(array: type) -> type:
    """`mx.array(stand_in)` is a copy, which the constructor of the type itself can't make."""

    class Kind(type):
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, array)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, array)

        def __getattr__(cls, name: str) -> Any:
            return getattr(array, name)

        def __call__(cls, value: Any, *args: Any, **kwargs: Any) -> Any:
            if type(value) is not Proxy:
                return array(value, *args, **kwargs)
            dtype = args[0] if args else kwargs.get("dtype")
            return RECORDER.do_astype(value, dtype) if dtype else Proxy(value.node)

    return Kind("array", (), {})


def wrap_operator(array: type, name: str, traced: Callable[..., Any]) -> None:
    real = getattr(array, name, None)
    if real is None:
        return

    def operator(self: Any, *args: Any) -> Any:
        return traced(self, *args) if holds_proxy(args) else real(self, *args)

    setattr(array, name, operator)


def refuse_mutation(array: Any, *args: Any) -> Any:
    """An array that exists cannot become part of the graph for all who hold it."""
    raise Untraceable("the library writes a tensor of the checkpoint into an array of its own")


def seams(shards: Shards) -> None:
    """Starts the run at `mx.load`, ends it where the prepared weights meet the model."""
    import mlx.core as mx
    import mlx.nn as nn

    real = nn.Module.load_weights

    def load_weights(self: Any, file_or_weights: Any, strict: bool = True) -> Any:
        if not isinstance(file_or_weights, str):
            weights = dict(file_or_weights)
            if holds_proxy(weights) or not shards.names:
                raise Captured(self, weights)
        return real(self, file_or_weights, strict)

    mx.load = shards.load
    nn.Module.load_weights = load_weights


# ---------------------------------------------------------------------------------------
# Running the library
# ---------------------------------------------------------------------------------------


def isolate() -> None:
    """No network and nothing that asks for it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"

    def audit(event: str, arguments: Any) -> None:
        if event in NETWORK_EVENTS:
            raise Refused(f"the library tries to reach the network (`{event}`)")

    sys.addaudithook(audit)


def without_code(value: Any) -> Any:
    """A config without the keys that make a library import Python from the checkpoint."""
    if isinstance(value, dict):
        rest = {k: without_code(v) for k, v in value.items() if k not in CODE_KEYS}
        return rest | {"auto_map": {}} if "auto_map" in rest else rest
    return [without_code(v) for v in value] if isinstance(value, list) else value


def lay_out(root: Path, request: dict[str, Any], shards: Shards) -> None:
    """A directory that looks like the checkpoint."""
    for name, text in request.get("side", {}).items():
        if not name.endswith(".json"):
            raise Untraceable(f"the side file `{name}` is not JSON")
        path = inside(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    config = json.dumps(without_code(request["config"]))
    (root / "config.json").write_text(config, encoding="utf-8")
    shards.place()
    if request.get("index"):
        places = {name: file for file, tensors in shards.files.items() for name in tensors}
        (root / INDEX_NAME).write_text(json.dumps({"weight_map": places}), encoding="utf-8")


def versions(package: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in ("mlx", package):
        try:
            found[name] = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def respond(request: dict[str, Any], root: Path) -> dict[str, Any]:
    """The answer: the traced graph, or the library's error."""
    library = request["library"]
    package = PACKAGES[library]
    try:
        import mlx.core as mx

        record(mx)
        utils = importlib.import_module(f"{package}.utils")
    except (Exception, SystemExit) as error:
        return failure(error, "import", package)
    shards = Shards(root, request)
    seams(shards)
    try:
        lay_out(root, request, shards)
        utils.load_model(root, lazy=True)
    except Captured as captured:
        head = {"version": VERSION, "library": library, "versions": versions(package)}
        return head | describe(captured, shards, library)
    except (Exception, SystemExit) as error:
        return failure(error, stage(error), package)
    error = Untraceable("load_model came back without loading weights")
    return failure(error, "load", package)


# The function that load_model calls, and what it is about.
STAGES = {
    "_get_classes": "config", "get_model_and_args": "config", "load_config": "config",
    "from_dict": "config", "update_module_configs": "config", "__init__": "model",
    "apply_generation_config_defaults": "config", "sanitize": "sanitize",
    "sanitize_weights": "sanitize", "transform_quantized_weights": "transform",
    "transform_fp8_weights": "transform", "_transform_awq_weights": "transform",
    "_quantize": "quantize", "load_model_weights": "quantize",
}  # fmt: skip


def stage(error: BaseException) -> str:
    """Where in load_model the error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames]
    if "load_model" not in names:
        return "input"
    inner = frames[names.index("load_model") + 1 :]
    if any("importlib" in frame.filename for frame in inner):
        return "import"
    return STAGES.get(inner[0].name, "load") if inner else "load"


def failure(error: BaseException, where: str, package: str) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    traceback.print_exception(error, file=sys.stderr)
    return {
        "version": VERSION,
        "error": {
            "kind": type(error).__name__,
            "message": str(error),
            "where": where,
            "at": f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None,
            "versions": versions(package),
        },
    }


# ---------------------------------------------------------------------------------------
# The answer
# ---------------------------------------------------------------------------------------


def describe(captured: Captured, shards: Shards, library: str) -> dict[str, Any]:
    """Graph and model as JSON values, in an order that depends on neither dict nor file order."""
    from mlx.utils import tree_flatten

    model, weights = captured.model, captured.weights
    parameters = dict(tree_flatten(model.parameters()))
    names = [n for n in parameters if n in weights]
    names += sorted(n for n in weights if n not in parameters)
    roots = [output_node(name, weights[name]) for name in names]
    nodes = ordered(roots)
    number_of = {id(node): i for i, node in enumerate(nodes)}
    used = {attributes_of(n)["name"] for n in nodes if n.op == "source"}
    return {
        "nodes": [as_json(node, number_of) for node in nodes],
        "outputs": [[n, number_of[id(root)]] for n, root in zip(names, roots, strict=True)],
        "dropped": sorted(name for name in shards.names if name not in used),
        "unread": sorted(shards.unread),
        "model": describe_model(model, weights, parameters, library),
    }


def output_node(name: str, value: Any) -> Node:
    if not isinstance(value, RECORDER.array_type):
        raise Untraceable(f"the library gives `{name}` a `{type(value).__name__}`")
    return RECORDER.as_node(value)


def ordered(roots: list[Node]) -> list[Node]:
    """All nodes that the roots need, inputs first."""
    order: list[Node] = []
    seen: set[int] = set()
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        node, ready = pending.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            if node.inputs:
                pending.append((node, True))
                pending += [(n, False) for n in reversed(node.inputs) if id(n) not in seen]
            else:
                order.append(node)
    return order


def attributes_of(node: Node) -> dict[str, Any]:
    return dict(node.attributes)


def as_json(node: Node, number_of: dict[int, int]) -> dict[str, Any]:
    inputs = [number_of[id(n)] for n in node.inputs]
    result = {"op": node.op, "in": inputs, "dtype": node.dtype, "shape": node.shape}
    for name, value in node.attributes:
        if name == "data":
            value = base64.b64encode(value).decode()
        elif name in ("args", "kwargs"):
            value = json.loads(value)
        result[name] = value
    return result


def describe_model(
    model: Any, weights: dict[str, Any], parameters: dict[str, Any], library: str
) -> dict[str, Any]:
    """What only the live model can tell: what it expects and what it wants quantized."""
    both = [name for name in weights if name in parameters]
    keep, keep_error = kept_dtypes(model, parameters)
    answer = {
        "parameters": {name: list(value.shape) for name, value in parameters.items()},
        "missing": sorted(name for name in parameters if name not in weights),
        "extra": sorted(name for name in weights if name not in parameters),
        "mismatched": sorted(
            n for n in both if tuple(weights[n].shape) != tuple(parameters[n].shape)
        ),
        "keep_dtype": keep,
        "keep_dtype_error": keep_error,
        "modules": [],
        "quantized": [],
        "skipped": [],
    }
    skip = always_dense(library)
    for path, module in leaf_modules(model):
        if hasattr(module, "to_quantized"):
            answer["modules"].append(describe_module(model, path, module, library))
            if skip(path):
                answer["skipped"].append(path)
        elif hasattr(module, "bits") and "scales" in module:
            fields = ("bits", "group_size", "mode")
            answer["quantized"].append(
                {"path": path} | {f: plain(getattr(module, f, None)) for f in fields}
            )
    return answer


def kept_dtypes(model: Any, parameters: Iterable[str]) -> tuple[list[str], str | None]:
    """The parameters that a convert does not cast, or the library's own error about them."""
    try:
        keep = getattr(model, "cast_predicate", None)
        return [name for name in parameters if not keep(name)] if keep else [], None
    except Exception as error:
        return [], f"{type(error).__name__}: {error}"


def leaf_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that nn.quantize asks about."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if isinstance(module, nn.Module):
            yield path, module


def always_dense(library: str) -> Callable[[str], bool]:
    """The paths that the library's convert keeps dense before it asks the model."""
    if library != "mlx-vlm":
        return lambda path: False
    from mlx_vlm.utils import skip_multimodal_module

    return skip_multimodal_module


def describe_module(model: Any, path: str, module: Any, library: str) -> dict[str, Any]:
    weight = module.get("weight")
    shape = None if weight is None else list(weight.shape)
    answer = {"path": path, "class": type(module).__name__, "shape": shape}
    try:
        answer["predicate"] = effective_predicate(model, path, module, library)
    except Exception as error:
        answer["predicate"] = None
        answer["predicate_error"] = f"{type(error).__name__}: {error}"
    return answer


def effective_predicate(model: Any, path: str, module: Any, library: str) -> Any:
    """What `convert -q` would be told about this module; None where nobody has an opinion."""
    if always_dense(library)(path):
        return False
    predicate = getattr(model, "quant_predicate", None)
    if predicate is None:
        return True if library == "mlx-vlm" else None
    return plain(predicate(path, module))


def plain(value: Any) -> Any:
    """A predicate's answer in JSON's types."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    known = value is None or isinstance(value, (bool, int, float, str))
    return value if known else bool(value)


def main() -> None:
    """One request, one answer; the real stdout is kept for it alone."""
    request = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        isolate()
        # Hundreds of thousands of small objects that all stay: collecting them is wasted.
        gc.disable()
        with tempfile.TemporaryDirectory(prefix="smelt-discover-") as directory:
            # Relative paths in a config must not find the caller's files.
            os.chdir(directory)
            answer = respond(request, Path(directory).resolve())
            os.chdir(os.sep)
        json.dump(answer, out, separators=(",", ":"), allow_nan=False)
        out.write("\n")


if __name__ == "__main__":
    main()
