"""The generated code of the CUDA kernels, without a device: its results on the processor, and its instructions."""

import re

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.cuda import codegen, kernels, reductions
from fastmomentum.backends.cuda.codegen import CONTRACTED
from fastmomentum.backends.cuda.scalars import derived_from
from fastmomentum.backends.numpy import kernels as numpy_kernels
from fastmomentum.backends.sums import make_summands
from fastmomentum.rules.elementwise import symbolic
from fastmomentum.rules.symbolic import formula
from tests.helpers.reference import RULES, VARIANTS, assert_all_same_bits, assert_same_bits

pytest.importorskip("numba_cuda", reason="the extra cuda is not installed")
pytest.importorskip("cuda.bindings.nvvm", reason="the extra cuda has no compiler here")

from numba import cuda, from_dtype
from numba.cuda import types

from tests.helpers.device_code import CAPABILITIES, OnProcessor, linked, ptx, ptx_for_each
from tests.helpers.rules import ADAPTIVE

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
EVERY = fm.chain(
    *(fm.stages.scale(0.5), fm.stages.clip_value(0.7), fm.stages.maximize, fm.stages.weight_decay(0.1)),
    *(
        fm.stages.decoupled_weight_decay(0.1),
        "nesterov_positions",
        fm.stages.soft_threshold(0.05),
        fm.stages.box(-3, 3),
    ),
)
PYTORCH = fm.rules.pytorch
CASES = [
    *(pytest.param(fm.rules.find(name), id=name) for name in (*RULES, *VARIANTS, "radam", "yogi")),
    ADAPTIVE,
    EVERY,
]


def row(rule, dtype, seed=0):
    """Return hyper-parameters between 0.1 and 0.9."""
    return tuple(dtype.type(x) for x in np.random.default_rng(seed).uniform(0.1, 0.9, len(rule.hyper)))


def aligned_arrays(rule, size, dtype, offsets, seed=0):
    """Return p, the state slots and g, each at an offset from a multiple of 64 bytes, with zeros and an infinity."""
    rng, made = np.random.default_rng(seed), []
    for offset in offsets[: 2 + len(rule.state)]:
        room = np.empty(size + 64, dtype)
        first = -room.ctypes.data % 64 // dtype.itemsize + offset
        made.append(room[first : first + size])
        made[-1][:] = rng.standard_normal(size)
        made[-1][rng.integers(0, max(size, 1), min(size, 3))] = [0.0, -0.0, np.inf][: min(size, 3)]
    return made


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("rule", CASES, ids=str)
def test_kernel_code_has_the_bits_of_numpy_when_run_on_the_processor(rule, dtype):
    run, oracle, hyper = OnProcessor(kernels.make_kernel(rule, dtype)), numpy_kernels.kernel(rule), None
    for size in (0, 1, 3, 4, 5, 17, kernels.TILE - 1, kernels.TILE, kernels.TILE + 1, 2 * kernels.TILE + 7):
        for offsets in ((0,) * 5, (1,) * 5, (3,) * 5, (0, 0, 1, 0, 0), (1, 2, 3, 0, 1)):
            hyper = row(rule, dtype, size)
            arrays = aligned_arrays(rule, size, dtype, offsets, size)
            expected = [array.copy() for array in arrays]
            addresses = tuple(array.ctypes.data for array in arrays)
            head = kernels.head_of(addresses, dtype.itemsize)
            run(2, 64, addresses, size, head, hyper)
            oracle(tuple(expected[:-1]), expected[-1], hyper)
            for found, wanted in zip(arrays, expected):
                both = np.isnan(found) & np.isnan(wanted)
                assert_same_bits(np.where(both, 0, found), np.where(both, 0, wanted))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("rule", [PYTORCH, ADAPTIVE, EVERY], ids=str)
def test_many_array_kernel_code_has_the_bits_of_numpy_when_run_on_the_processor(rule, dtype):
    sizes, slots = (5, 0, kernels.TILE + 3, 1, 3 * kernels.TILE, 17), len(rule.state)
    offsets = ((0,) * 4, (1,) * 4, (3,) * 4, (0, 1, 0, 0), (1,) * 4, (2, 2, 2, 0))
    arrays = [aligned_arrays(rule, n, dtype, offset, n) for n, offset in zip(sizes, offsets)]
    table = np.zeros((len(sizes), kernels.ADDRESSES + slots + 2), np.int64)
    hyper = np.array([row(rule, dtype, seed) for seed in range(len(sizes))], dtype)
    for told, group in zip(table, arrays):
        addresses = [array.ctypes.data for array in group]
        told[:] = group[0].size, kernels.head_of(addresses, dtype.itemsize), *addresses
    ends = np.cumsum([0, *(-(-n // kernels.TILE) for n in sizes)]).astype(np.int64)
    expected = [[array.copy() for array in group] for group in arrays]
    given = table.ctypes.data, ends.ctypes.data, len(sizes), ends[-1:].ctypes.data, hyper.ctypes.data
    run = OnProcessor(kernels.make_many_kernel(rule, dtype))
    nothing = np.zeros(1, np.int64)
    run(3, 32, *given[:3], nothing.ctypes.data, given[4])  # without tiles the kernel does nothing
    for group, wanted in zip(arrays, expected):
        assert_all_same_bits(group, wanted)
    run(3, 32, *given)
    oracle = numpy_kernels.kernel(rule)
    for group, wanted, values in zip(arrays, expected, hyper):
        oracle(tuple(wanted[:-1]), wanted[-1], tuple(values))
        for found, theirs in zip(group, wanted):
            both = np.isnan(found) & np.isnan(theirs)
            assert_same_bits(np.where(both, 0, found), np.where(both, 0, theirs))


def made_sums(summands, arrays, n_hyper):
    return reductions.make_sums_kernel(formula(summands, arrays + n_hyper), SINGLE, arrays, n_hyper)


@pytest.mark.parametrize("name", ["lamb", "lars", "fire"])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_sums_of_rules_have_the_bits_of_numpy_when_run_on_the_processor(name, dtype):
    rule = fm.rules.find(name)
    (link,) = rule.summing_links
    arrays, n_hyper, width = 2 + len(rule.state), len(rule.hyper), len(link.sums)
    program = formula(make_summands(rule, link, symbolic), arrays + n_hyper)
    sums, store = codegen.make_sums(dtype, 1, program, arrays, n_hyper), codegen.make_store(DOUBLE)
    load_row, load_hyper = codegen.make_loads(np.dtype(np.int64), arrays), codegen.make_loads(dtype, n_hyper)

    def kernel(row, count, hyper, out):
        totals = sums(load_row(row), 0, count, load_hyper(hyper))
        for k in range(width):
            store(out + 8 * k, totals[k])

    rng = np.random.default_rng(0)
    values = [np.abs(rng.standard_normal(37)).astype(dtype) for _ in range(arrays)]
    row, hyper = np.array([x.ctypes.data for x in values]), np.linspace(0.1, 0.9, n_hyper).astype(dtype)
    out = np.empty(width)
    OnProcessor((kernel, types.void(*[types.int64] * 4)))(1, 1, row.ctypes.data, 37, hyper.ctypes.data, out.ctypes.data)
    expected = [0.0] * width
    for i in range(37):
        summands = make_summands(rule, link)(*[x[i] for x in values], *hyper)
        expected = [total + summand for total, summand in zip(expected, summands)]
    assert_same_bits(out, np.array(expected))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 32])
def test_sums_are_added_in_order_when_run_on_the_processor(dtype, stride):
    program = formula(reductions.make_norm_summands(1), 1)
    sums, store = codegen.make_sums(dtype, stride, program, 1, 0), codegen.make_store(DOUBLE)

    def kernel(address, count, out):
        squares, zeros = sums((address,), 0, count, ())
        store(out, squares)
        store(out + 8, zeros)

    run = OnProcessor((kernel, types.void(*[types.int64] * 3)))
    rng = np.random.default_rng(0)
    for count in (0, 1, 15, 16, 17, 33, 200):
        values = rng.standard_normal(count * stride + 1).astype(dtype) * 10.0 ** rng.integers(-8, 8, count * stride + 1)
        values = values.astype(dtype)
        for wrong in (None, np.inf) if count else (None,):
            if wrong is not None:
                values[(count - 1) * stride] = wrong
            out, total = np.empty(2), 0.0
            run(1, 1, values.ctypes.data, count, out.ctypes.data)
            for x in values[: count * stride : stride].astype(np.float64):
                total += float(x) * float(x)
            assert out[0] == total
            assert np.isnan(out[1]) if wrong else out[1] == 0.0


@pytest.mark.parametrize(
    ("places", "itemsize", "head"),
    [((0, 64, 16), 4, 0), ((4, 20, 52), 4, 3), ((12, 12), 4, 1), ((8, 24), 8, 1), ((0, 4), 4, kernels.TILE)],
)
def test_vector_loads_begin_at_the_first_common_alignment(places, itemsize, head):
    assert kernels.head_of(places, itemsize) == head


def test_kernel_code_writes_nothing_outside_its_arrays():
    rule = fm.rules.pytorch
    run = OnProcessor(kernels.make_kernel(rule, SINGLE))
    for size, offset in ((1, 1), (18, 3), (64, 0), (67, 2)):
        rooms = [np.full(256, 7.0, np.float32) for _ in range(3)]
        first = -rooms[0].ctypes.data % 64 // 4 + offset
        addresses = tuple(room.ctypes.data + 4 * first for room in rooms)
        run(1, 8, addresses, size, kernels.head_of(addresses, 4), row(rule, SINGLE))
        for room in rooms[:2]:
            assert (room[:first] == 7).all()
            assert (room[first + size :] == 7).all()
            assert (room[first : first + size] != 7).all()


@pytest.mark.parametrize("rule", CASES, ids=str)
@pytest.mark.parametrize(
    ("make", "dtype"), [(kernels.make_kernel, SINGLE), (kernels.make_many_kernel, DOUBLE)], ids=["one", "many"]
)
def test_ptx_loads_vectors_and_contracts_nothing(rule, dtype, make):
    for capability, code in ptx_for_each(make(rule, dtype)).items():
        assert f".target sm_{capability[0]}{capability[1]}" in code
        kind = r"(v4\.[fb]32|v2\.[fb]64)\b"  # 16 bytes
        arrays = 1 + len(rule.state)
        assert len(re.findall(rf"\bld\.global\.{kind}", code)) >= arrays + 1
        assert len(re.findall(rf"\bst\.global\.{kind}", code)) >= arrays
        assert not re.search(r"\bfma\.", code)
        assert not re.search(r"\b(ld|st)\.local|\.local \.", code)
        # ptxas may contract instructions without a rounding mode
        assert not re.search(r"\b(add|mul|sub)\.f(32|64)", code)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_contraction_is_detected_by_these_tests(capability):
    rule = fm.rules.pytorch
    code = ptx(kernels.make_many_kernel(rule, SINGLE, CONTRACTED), capability)
    assert re.search(r"\bfma\.rn\.f32", code)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
@pytest.mark.parametrize(
    ("made", "most"),
    [
        pytest.param(lambda: kernels.make_kernel(fm.rules.pytorch, SINGLE), 64, id="one"),
        pytest.param(lambda: kernels.make_many_kernel(fm.rules.pytorch, SINGLE), 64, id="many"),
        pytest.param(lambda: kernels.make_many_kernel(EVERY, DOUBLE), 96, id="every stage"),
        pytest.param(lambda: made_sums(reductions.make_norm_summands(3), 3, 1), 96, id="squares"),
        pytest.param(lambda: made_sums(make_summands(fm.rules.lamb, fm.rules.lamb, symbolic), 4, 9), 160, id="lamb"),
        pytest.param(reductions.make_finish_kernel, 128, id="finish"),
    ],
)
def test_linked_kernels_spill_no_registers_and_contract_nothing(made, most, capability):
    code, told = linked(made(), capability)
    assert "// Generated by NVIDIA NVVM Compiler" in code
    assert not re.search(r"\bfma\.", code)
    assert not re.search(r"\b(ld|st)\.local|\.local \.", code)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", told)]
    assert registers, told
    assert max(registers) <= most  # with 64 registers a multiprocessor holds four blocks of 256 threads
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in re.sub(r"\s+", " ", told)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("stored", [SINGLE, DOUBLE], ids=str)
def test_hyper_parameters_are_derived_on_the_device_from_device_scalars(dtype, stored):
    rule = fm.chain(fm.stages.decoupled_weight_decay, "ema_nesterov")
    names, device = rule.parameters, {"lr": stored, "momentum": stored}
    columns = derived_from(rule, device)
    assert [rule.hyper[column.column] for column in columns] == ["shrink", "lr", "momentum", "keep"]
    made = kernels.make_derive_kernel(columns, names, device, dtype, len(rule.hyper))
    lr, mu = np.array([0.1], stored), np.array([0.9], stored)
    given = {"lr": 0.5, "momentum": 0.5, "decoupled_weight_decay": 0.3, "momentum_next": 0.7}
    table = np.full((3, len(rule.hyper)), 7, dtype)
    values = tuple(given[name] for name in names)
    OnProcessor(made)(1, 2, (lr.ctypes.data, mu.ctypes.data), values, table.ctypes.data, 3)
    told = given | {"lr": float(lr[0]), "momentum": float(mu[0])}
    expected = [dtype.type(x) for x in rule.arguments(told)]
    expected[rule.hyper.index("momentum_next")] = dtype.type(7)  # the host writes this one
    for found in table:
        assert_same_bits(found, np.array(expected, dtype))


def users_kernel(rule, dtype, whole):
    """Return a kernel as a user writes it, which calls the scalar function or the array function, and its signature."""
    scalar, sweep, arrays = fm.jit.cuda.update(rule), fm.jit.cuda.kernel(rule), 1 + len(rule.state)

    def by_scalar(written, g, hyper):
        i = cuda.grid(1)
        if i < g.size:
            written[0][i], written[1][i] = scalar(written[0][i], written[1][i], g[i], *hyper)

    def by_sweep(written, g, hyper):
        sweep(cuda.grid(1), cuda.gridsize(1), *written, g, *hyper)

    array = types.Array(from_dtype(dtype), 1, "C")
    hyper = types.UniTuple(types.float64, len(rule.hyper))
    return by_sweep if whole else by_scalar, types.void(types.UniTuple(array, arrays), array, hyper)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("rule", CASES, ids=str)
def test_users_kernels_contain_no_call_and_contract_nothing(rule, dtype):
    made = [users_kernel(rule, dtype, whole) for whole in (True, False) if whole or len(rule.state) == 1]
    for code in (code for each in made for code in ptx_for_each(each).values()):
        assert re.search(r"\b(add|mul)\.rn\.f(32|64)", code)
        assert not re.search(r"\bfma\.|\bcall", code)
        assert not re.search(r"\b(add|mul|sub)\.f(32|64)", code)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("rule", CASES, ids=str)
def test_scalar_functions_have_the_bits_of_numpy_when_run_on_the_processor(rule, dtype):
    arrays, taken, kind = 2 + len(rule.state), len(rule.hyper), from_dtype(dtype)
    scalar, load, store = fm.jit.cuda.update(rule), codegen.make_loads(dtype, arrays), codegen.make_store(dtype)

    def kernel(given, out, hyper):
        found = scalar(*load(given), *hyper)
        store(out, found[0])

    run = OnProcessor((kernel, types.void(types.int64, types.int64, types.UniTuple(kind, taken))))
    values = row(rule, dtype)
    for seed in range(20):
        given, out = np.random.default_rng(seed).standard_normal(arrays).astype(dtype), np.empty(1, dtype)
        run(1, 1, given.ctypes.data, out.ctypes.data, values)
        with np.errstate(all="ignore"):  # of an adaptive rule, which takes a root of its state
            assert_same_bits(out[0], rule.update(*given, *values)[0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            (types.float32[::1], types.float64[::1], types.float32[::1]),
            "velocity: expected float32 or float64, and one",
        ),
        ((types.float32[:], types.float32[::1], types.float32[::1]), "p: expected a C-contiguous array"),
        ((types.int64[::1],) * 3, "p: expected float32 or float64"),
        ((types.Array(types.float32, 1, "C", readonly=True),) * 3, "p: expected a writeable array"),
    ],
)
def test_kernel_refuses_arrays_of_wrong_types(arrays, message):
    sweep = fm.jit.cuda.kernel("pytorch")

    def kernel(p, v, g):
        sweep(0, 1, p, v, g, 0.1, 0.9, 1.0)

    with pytest.raises(Exception, match=message):
        ptx((kernel, types.void(*arrays)), (8, 0))


def test_scalar_function_refuses_integers():
    scalar = fm.jit.cuda.sgd

    def kernel(p):
        p[0] = scalar(1, 0.5, 0.1)[0]

    with pytest.raises(Exception, match="p: expected float32 or float64"):
        ptx((kernel, types.void(types.float32[::1])), (8, 0))
