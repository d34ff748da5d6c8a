"""Device functions as LLVM code: a rule's update of one element or of a vector, loads, stores, sums."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic
from numba.cuda.typing import signature

from fastmomentum.backends.cuda.columns import Column
from fastmomentum.backends.cuda.operations import STRICT, emit
from fastmomentum.backends.dtypes import Dtypes
from fastmomentum.records import Update
from fastmomentum.trace import trace

GLOBAL = 1  # the address space of device memory: without it, loads ask first which memory they are from
KINDS = {np.dtype(np.float32): (ir.FloatType(), "f"), np.dtype(np.float64): (ir.DoubleType(), "d")}
INT64 = ir.IntType(64)


def place(builder: Any, address: Any, kind: Any) -> Any:
    """The address, an integer, as a pointer into device memory."""
    return builder.inttoptr(address, kind.as_pointer(addrspace=GLOBAL))


def make_update(rule: Update, dtypes: Dtypes, width: int, operations: Any = None) -> Any:
    """A device function ``update(addresses, i, values)``: elements i to i + width − 1 of all arrays, updated.

    `addresses` are those of p, *state and g, `values` the hyper-parameters. More than one element are loaded and
    stored as one vector, whose address must be a multiple of its size.
    """
    arrays, taken = 1 + len(rule.state), len(rule.hyper)
    names = [str(i) for i in range(arrays + 1 + taken)]
    results = trace(rule.build(), names, arrays)
    kind, _ = KINDS[dtypes.param]
    size = dtypes.param.itemsize
    wide = ir.VectorType(kind, width)

    @intrinsic
    def update(typing_context: Any, addresses: Any, i: Any, values: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            offset = builder.mul(arguments[1], ir.Constant(INT64, size))
            places = [
                place(builder, builder.add(builder.extract_value(arguments[0], j), offset), wide)
                for j in range(arrays + 1)
            ]
            loaded = [builder.load(each, align=size * width) for each in places]
            hyper = [builder.extract_value(arguments[2], j) for j in range(taken)]
            stored = [ir.Constant(wide, ir.Undefined)] * arrays
            for lane in (ir.Constant(ir.IntType(32), j) for j in range(width)):
                elements = [builder.extract_element(each, lane) for each in loaded]
                found = emit(builder, results, dict(zip(names, elements + hyper)), operations)
                stored = [builder.insert_element(whole, one, lane) for whole, one in zip(stored, found)]
            for vector, each in zip(stored, places):
                builder.store(vector, each, align=size * width)
            return context.get_dummy_value()

        return signature(types.void, addresses, types.int64, values), codegen

    return update


def type_of(dtype: np.dtype[Any]) -> Any:
    """What kernels' signatures call this dtype."""
    return getattr(types, dtype.name)


def make_loads(dtype: np.dtype[Any], count: int) -> Any:
    """A device function ``loads(address)``: a tuple of so many numbers that lie there."""
    number = type_of(dtype)

    @intrinsic
    def loads(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            start = place(builder, arguments[0], context.get_value_type(number))
            found = [builder.load(builder.gep(start, [ir.Constant(INT64, i)])) for i in range(count)]
            return context.make_tuple(builder, types_of.return_type, found)

        return signature(types.UniTuple(number, count), types.int64), codegen

    return loads


def make_store(dtype: np.dtype[Any]) -> Any:
    """A device function ``store(address, value)``."""
    number = type_of(dtype)

    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            builder.store(arguments[1], place(builder, arguments[0], context.get_value_type(number)))
            return context.get_dummy_value()

        return signature(types.void, types.int64, number), codegen

    return store


def make_settle(
    columns: Sequence[Column], names: Sequence[str], on_device: Mapping[str, np.dtype[Any]], dtype: np.dtype[Any]
) -> Any:
    """A device function ``settle(addresses, values, row)``, which computes these columns of a row of hyper-parameters.

    `addresses` are those of the scalars `on_device`, `values` holds all `names` in double precision (those on the
    device for nothing). Computed in double precision and then cast, as on the host.
    """
    double, (kind, _) = ir.DoubleType(), KINDS[dtype]

    @intrinsic
    def settle(typing_context: Any, addresses: Any, values: Any, row: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            known = {name: builder.extract_value(arguments[1], i) for i, name in enumerate(names)}
            for i, (name, stored) in enumerate(on_device.items()):
                found = builder.load(place(builder, builder.extract_value(arguments[0], i), KINDS[stored][0]))
                known[name] = found if found.type == double else builder.fpext(found, double)
            start = place(builder, arguments[2], kind)
            for column in columns:
                (result,) = emit(builder, (column.formula(),), known)
                cast = result if kind == double else builder.fptrunc(result, kind)
                builder.store(cast, builder.gep(start, [ir.Constant(INT64, column.place)]))
            return context.get_dummy_value()

        return signature(types.void, addresses, values, types.int64), codegen

    return settle


TERMS: dict[str, Callable[..., Any]] = {
    "x": lambda builder, x: x,
    "x²": lambda builder, x: STRICT["*"](builder, x, x),
    "0·x": lambda builder, x: STRICT["*"](builder, x, ir.Constant(x.type, 0.0)),
}
"""What can be summed."""

UNROLLED = 16
"""Loads under way at once in :func:`make_sums`: sums must be formed one after the other, loads need not."""


def make_sums(dtype: np.dtype[Any], stride: int, terms: Sequence[str]) -> Any:
    """A device function ``sums(address, count)``: for each of the :data:`TERMS` named, its sum over `count` numbers.

    Formed in order and in double precision; the numbers stand `stride` apart.
    """
    double, (kind, _) = ir.DoubleType(), KINDS[dtype]

    @intrinsic
    def sums(typing_context: Any, address: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, types_of: Any, arguments: Any) -> Any:
            start, number = place(builder, arguments[0], kind), arguments[1]
            totals = [cgutils.alloca_once_value(builder, ir.Constant(double, 0.0)) for _ in terms]

            def add(first: Any, elements: int) -> None:
                steps = [builder.add(first, ir.Constant(INT64, i)) for i in range(elements)]
                places = [builder.gep(start, [builder.mul(step, ir.Constant(INT64, stride))]) for step in steps]
                for loaded in [builder.load(each) for each in places]:
                    x = loaded if kind == double else builder.fpext(loaded, double)
                    for total, term in zip(totals, terms):
                        more = STRICT["+"](builder, builder.load(total), TERMS[term](builder, x))
                        builder.store(more, total)

            whole = builder.sdiv(number, ir.Constant(INT64, UNROLLED))
            with cgutils.for_range(builder, whole) as loop:
                add(builder.mul(loop.index, ir.Constant(INT64, UNROLLED)), UNROLLED)
            done = builder.mul(whole, ir.Constant(INT64, UNROLLED))
            with cgutils.for_range(builder, builder.sub(number, done)) as loop:
                add(builder.add(done, loop.index), 1)
            return context.make_tuple(builder, types_of.return_type, [builder.load(total) for total in totals])

        return signature(types.UniTuple(types.float64, len(terms)), types.int64, types.int64), codegen

    return sums
