"""What is kept of rules: kernels by formula, everything else with the rule, all bounded, and cleared on demand."""

import contextlib
import copy
import gc
import linecache
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.cpu import kernels as cpu_kernels
from fastmomentum.backends.numpy import kernels as numpy_kernels
from fastmomentum.rules import assemble, cache
from fastmomentum.rules.symbolic import formula

FLOAT64 = np.dtype(np.float64)


def make_rule(combine=np.minimum, **record):
    """Return a new rule of a factory, whose function closes over another function."""

    def update(p, v, g, lr, mu):
        v = combine(mu * v, g)
        return p - lr * v, v

    return fm.Rule(update, **record)


def use(rule):
    """Use a rule in every way that keeps something, and return weak references to the rule and to a velocity."""
    p, v, g = np.ones(5), np.zeros(5), np.ones(5)
    opt = fm.Momentum(p, rule=rule, lr=lambda step: 0.1, weight_decay=0.1, max_norm=1.0, backend="numpy")
    trace = opt.trace()
    opt.step(g)
    opt.weight_decay = 0.0
    opt.step(g)
    repr(trace)
    trace.stop()
    fm.Momentum(p, rule=rule, lr=0.1, mask=np.ones(5, bool), lr_scale=np.ones(5), backend="numpy").step(g)
    for lr in (0.1, 0.2):
        fm.step(p, v, g, rule=rule, lr=lr, backend="numpy")
        fm.step(p, v, g, rule=fm.chain(fm.stages.clip_value(lr), rule), lr=lr, weight_decay=0.1, backend="numpy")
    fm.jit.hyper(rule, lr=0.1, momentum=0.9)
    with contextlib.suppress(ValueError):  # the rule is not linear
        fm.theory.spectral_radius(0.1, 0.9, 1.0, rule=rule)
    return weakref.ref(rule), weakref.ref(opt.velocity)


KERNELS_OF = {
    "one array": lambda rule: cpu_kernels.kernel(rule, FLOAT64),
    "numpy": numpy_kernels.kernel,
    "scalar": fm.jit.update,
    "embedded": fm.jit.kernel,
    "C": lambda rule: fm.jit.cfunc(rule, FLOAT64).address,
}


@pytest.mark.parametrize("kind", KERNELS_OF)
def test_equal_rules_of_a_factory_share_a_kernel_and_others_do_not(kind):
    kernel_of = KERNELS_OF[kind]
    one, twin, other = make_rule(), make_rule(defaults={"lr": 0.5}), make_rule(np.maximum)
    assert kernel_of(one) == kernel_of(twin)
    assert kernel_of(one) != kernel_of(other)


FORMULAS = {
    "names": (lambda p, v, g: p + v * g, lambda a, b, c: a + b * c, True),
    "steps in between": (lambda p, v, g: p + v * g, lambda p, v, g: (lambda x: p + x)(v * g), True),
    "a value used twice": (lambda p, v, g: (p * v) + (p * v), lambda p, v, g: (lambda x: x + x)(p * v), True),
    "order of a sum": (lambda p, v, g: (p + v) + g, lambda p, v, g: p + (v + g), False),
    "order of operands": (lambda p, v, g: p + v, lambda p, v, g: v + p, False),
    "order of arguments": (lambda p, v, g: p - v, lambda v, p, g: p - v, False),
    "order of results": (lambda p, v, g: (p, v), lambda p, v, g: (v, p), False),
    "sign": (lambda p, v, g: p - v, lambda p, v, g: p + (-v), False),
    "operation": (lambda p, v, g: np.minimum(p, v), lambda p, v, g: np.maximum(p, v), False),
    "an operation without use": (lambda p, v, g: (p * v, p)[1], lambda p, v, g: p, True),
}


@pytest.mark.parametrize("pair", FORMULAS)
def test_formula_is_equal_if_the_operations_are(pair):
    one, other, equal = FORMULAS[pair]
    assert (formula(one, 3) == formula(other, 3)) is equal


def test_formula_of_nested_squares_has_one_operation_for_each():
    def power(x, times):
        return x if times == 0 else power(x * x, times - 1)

    assert len(formula(lambda x: power(x, 200), 1)) == 201


def test_rule_with_the_formula_of_another_is_not_taken_for_it():
    """The rules pytorch and ema have one formula, and one kernel; they differ in the number 1 − τ or 1 − β."""
    assert fm.rules.find("ema").structure == fm.rules.find("pytorch").structure
    ema = fm.rules.find("ema")

    def update(p, v, g, lr, mu, keep):
        v = mu * v + keep * g
        return p - lr * v, v

    other = fm.Rule(update, hyper=ema.hyper, derived={"keep": lambda momentum: 1.0}, name="ema")
    assert other.structure == ema.structure
    with pytest.raises(ValueError, match="expected one of"):
        fm.convert(np.ones(2), source=other, target="pytorch", lr=0.1, momentum=0.5)


def test_rules_that_are_gone_are_released():
    references = [use(make_rule(name=f"rule {i}")) for i in range(5)]
    gc.collect()
    assert [reference() for pair in references for reference in pair] == [None] * 10


def test_compiled_rules_that_are_gone_are_released():
    references = []
    for _ in range(3):
        rule, p, v = make_rule(), np.ones(5), np.zeros(5)
        fm.Momentum(p, rule=rule, lr=0.1).step(np.ones(5))
        fm.step(p, v, np.ones(5), rule=rule, lr=0.1)
        references.append(weakref.ref(rule))
        del rule
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_equal_rules_made_in_a_loop_take_no_more_memory():
    use(make_rule())
    gc.collect()
    tracemalloc.start()
    try:
        kernels, before = len(cache._kernels), tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            use(make_rule())
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache._kernels) == kernels
    assert (
        growth / 20 < 20_000
    )  # bytes a rule, in which Python's own caches show; a rule with its results takes 200,000


@pytest.mark.parametrize("number", [3, 7])
def test_kernels_that_were_not_asked_for_the_longest_are_released_first(number, monkeypatch):
    monkeypatch.setattr(cache, "_kernels", {})
    monkeypatch.setattr(cache, "KERNELS", number)
    made = []
    for i in range(10):
        assert cache.cached_kernel(i, lambda i=i: made.append(i) or [i]) == [i]
        cache.cached_kernel(0, list)
        assert len(cache._kernels) <= number
    assert made == [*range(10)]
    assert list(cache._kernels) == [*range(11 - number, 10), 0]


def test_values_kept_with_a_rule_are_bounded_in_number():
    p, v, g, rule = np.ones(2), np.zeros(2), np.ones(2), make_rule()
    for i in range(3 * cache.RESULTS):
        fm.step(p, v, g, rule=rule, lr=1.0 / (1 + i), backend="numpy")
    sizes = [each.cache_info().currsize for each in vars(rule)[cache.KEPT].values()]
    assert max(sizes) == cache.RESULTS


def test_texts_in_linecache_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(assemble, "FILES", 5)
    monkeypatch.setattr(assemble, "_files", {})
    found = [assemble.define("f", f"def f(x):\n    return x + {i}\n", {}) for i in range(9)]
    assert [function(1) for function in found] == [*range(1, 10)]
    names = [function.__code__.co_filename for function in found]
    assert [name in linecache.cache for name in names] == [False] * 4 + [True] * 5
    for name in names:
        linecache.cache.pop(name, None)


def test_optimiser_goes_on_with_its_kernels_when_the_cache_is_cleared(monkeypatch):
    monkeypatch.setattr(cache, "_kernels", {})  # the kernels of other tests stay
    p, q = np.ones(5), np.ones(5)
    one, other = (fm.Momentum(x, lr=0.1, weight_decay=0.1) for x in (p, q))
    update = fm.jit.cfunc("sgd", np.float64)
    for i in range(4):
        if i == 2:
            fm.clear_cache()
            gc.collect()
        one.step(p.copy())
        other.step(q.copy())
    assert cache._kernels == {}
    np.testing.assert_array_equal(p, q)
    assert cache.KEPT not in vars(fm.rules.find("pytorch"))
    assert fm.jit.cfunc("sgd", np.float64).prototype == update.prototype


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule))])
def test_copy_of_a_rule_has_none_of_what_is_kept_with_it(make_copy):
    rule = fm.chain(fm.stages.weight_decay(0.1), "pytorch")
    fm.step(np.ones(2), np.zeros(2), np.ones(2), rule=rule, lr=0.1, backend="numpy")
    assert cache.KEPT in vars(rule)
    twin = make_copy(rule)
    assert cache.KEPT not in vars(twin)
    assert twin.structure == rule.structure
