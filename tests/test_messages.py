"""Advice in error messages: each is followed here, as a user would do, and must do what the user wanted.

A row names the code that the message must contain. The test evaluates this very code, with the value in the place of
``...`` or before ``.``, and so on until no message comes.
"""

import array
import re
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.rules import registry
from tests.helpers.arrays import gradients, misaligned, random_arrays, read_only
from tests.helpers.ids import text_or_none

F4, F8 = np.float32, np.float64
CONTIGUOUS = "numpy.ascontiguousarray(...)"
FIELD = np.dtype([("weight", F4)])
FIELDS = np.dtype([("weight", F4), ("bias", F4)])
PLAIN_WITH_FIELD = np.dtype((F4, [("weight", F4)]))
"""A dtype that equals float32, but has a field: Numba takes it for a record."""

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")


class Subclass(np.ndarray):
    """An array that has attributes of the package's own classes, of tensors and of device arrays."""

    look, header, owner, address, detach, keeps_velocity, named_parameters = 1, 2, 3, 4, 5, True, 7


class ListWithAttributes(list):
    look, header, owner, address, detach, is_neg, is_conj = 1, 2, 3, 4, 5, 6, 7


def evaluate(code, value):
    """Return the value of an advice for a refused value."""
    names = {"numpy": np, "torch": torch, "value": value, "pairs": value, "module": value, "d": value}
    if code.startswith((".", "['")):
        code = f"value{code}"
    return eval(code.replace("...", "value"), names)


def follow(call, value, codes):
    """Call with the value, and after each refusal with the value of the advice; return the value that was taken."""
    for code in codes:
        with pytest.raises((TypeError, ValueError)) as refused:
            call(value)
        assert code in str(refused.value)
        value = evaluate(code, value)
    call(value)
    return value


def descend(params):
    """Do one step with lr 1/2 at the gradient 1."""
    opt = fm.Momentum(params, lr=0.5, backend="numpy")
    arrays = opt.params

    def ones(each):
        return torch.ones_like(each) if isinstance(each, torch.Tensor) else np.ones_like(each)

    if isinstance(arrays, dict):
        opt.step({name: ones(each) for name, each in arrays.items()})
    elif isinstance(arrays, list):
        opt.step([ones(each) for each in arrays])
    else:
        opt.step(ones(arrays))


REPLACED = {
    "int64": (np.arange(3), ".astype(numpy.float64)"),
    "int8": (np.arange(3, dtype=np.int8), ".astype(numpy.float32)"),
    "bool": (np.array([True, False]), ".astype(numpy.float32)"),
    "float16": (np.ones(3, np.float16), ".astype(numpy.float32)"),
    "longdouble": (np.ones(3, np.longdouble), ".astype(numpy.float64)"),
    "clongdouble": (np.full(3, 2j, np.clongdouble), ".astype(numpy.complex128)"),
    "big-endian float": (np.ones(3, ">f4"), ".astype(numpy.float32)"),
    "big-endian complex": (np.full(3, 1j, ">c8"), ".astype(numpy.complex64)"),
    "list": ([1.0, 1 / 3], "numpy.array(..., dtype=numpy.float64)"),
    "list of int": ([1, 2**40], "numpy.array(..., dtype=numpy.float64)"),
    "complex list": ([1j, 2.0 + 0j], "numpy.array(..., dtype=numpy.complex128)"),
    "nested list": ([[1.0, 2.0]], "numpy.array(..., dtype=numpy.float64)"),
    "number": (1.5, "numpy.array(..., dtype=numpy.float64)"),
    "scalar": (F4(1.5), "numpy.array(..., dtype=numpy.float32)"),
    "array of integers": (array.array("i", [1, 2]), "numpy.array(..., dtype=numpy.float64)"),
    "read-only memory": (np.frombuffer(np.ones(2).tobytes()), "numpy.array(...)"),
    "misaligned": (misaligned(np.ones(3, F4)), "numpy.array(...)"),
    "windows": (np.lib.stride_tricks.sliding_window_view(np.arange(4.0), 2, writeable=True), "numpy.array(...)"),
    "jax": (jax.numpy.ones(3), "numpy.array(...)"),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_parameter_has_its_values_and_is_updated(name):
    """Follow "replace it by": the new array has the old values, without loss, and a step changes it."""
    value, code = REPLACED[name]
    before = np.array(value)
    assert np.array_equal(follow(descend, value, [code]), before - 0.5)


SAME_MEMORY = {
    "masked": (lambda: np.ma.array(np.ones(3), mask=[0, 1, 0]), [".data"]),
    "field": (lambda: np.ones(3, FIELD), ["['weight']"]),
    "float32 with a field": (lambda: np.ones(3, PLAIN_WITH_FIELD), ["['weight']"]),
    "read-only": (lambda: read_only(np.ones(3)), [".flags.writeable = True"]),
    "array.array": (lambda: array.array("d", [1.0, 1.0]), ["numpy.asarray(...)"]),
    "memoryview": (lambda: memoryview(np.ones(3, F4)), ["numpy.asarray(...)"]),
}


@pytest.mark.parametrize("name", SAME_MEMORY)
def test_a_parameter_that_is_passed_by_its_memory_is_the_users_own(name):
    """Follow advice that promises the same memory: the value that the user has is updated."""
    make, codes = SAME_MEMORY[name]
    value = make()
    if "=" in codes[0]:
        with pytest.raises(ValueError, match=re.escape(codes[0])):
            descend(value)
        value.flags.writeable = True
        descend(value)
    else:
        follow(descend, value, codes)
    assert np.array_equal(np.asarray(value).view(F4) if name == "field" else np.asarray(value), [0.5] * len(value))


def test_a_view_with_holes_is_updated_when_it_is_written_back():
    weights = np.ones((4, 6))
    for view in (weights[:, ::2], weights.T[1:4:2], weights[::-2]):
        weights[...] = 1
        with pytest.raises(
            ValueError, match=r"Update (.*), a copy, and write it back after each step: (.*)$"
        ) as refused:
            descend(view)
        make, write_back = re.search(r"Update (.*), a copy, .* each step: (.*)$", str(refused.value)).groups()
        names = {"numpy": np, "view": view}
        exec(make, names)
        opt = fm.Momentum(names["p"], lr=0.5, momentum=0.0, backend="numpy")
        for _ in range(2):
            opt.step(np.ones_like(names["p"]))
            exec(write_back, names)
        assert (view == 0).all()
        assert weights.sum() == weights.size - view.size


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_tensor_that_numpy_lacks_is_updated_when_it_is_written_back(kind):
    tensor = torch.ones(3, dtype=getattr(torch, kind), requires_grad=True)
    with pytest.raises(TypeError, match=f"got Tensor of torch.{kind}, shape") as refused:
        fm.Momentum(tensor, lr=0.5)
    make, write_back = re.search(r"Update (.*), a copy, .* each step: (.*)$", str(refused.value)).groups()
    names, version = {"torch": torch, "tensor": tensor}, tensor._version
    exec(make, names)
    fm.Momentum(names["p"], lr=0.5, backend="numpy").step(np.ones(3, F4))
    exec(write_back, names)
    assert tensor.detach().float().tolist() == [0.5] * 3
    assert tensor._version > version  # so that a backward pass through the old values is refused


@pytest.mark.parametrize(
    ("tensor", "codes"),
    [
        (torch.ones(3, dtype=torch.int64), [".float()"]),
        (torch.tensor([1.0, 0.0]).to_sparse(), [".to_dense()"]),
    ],
    ids=["whole numbers", "sparse"],
)
def test_a_tensor_without_an_array_is_replaced(tensor, codes):
    before = tensor.to_dense().float().numpy() if tensor.is_sparse else tensor.float().numpy()
    assert np.array_equal(follow(descend, tensor, codes), before - 0.5)


def test_a_module_or_its_named_parameters_become_a_dict_on_its_memory():
    module = torch.nn.Linear(2, 3)
    code, pairs = "dict(module.named_parameters())", "dict(pairs)"
    before = module.weight.detach().clone()
    follow(descend, module, [code])
    follow(descend, list(module.named_parameters()), [pairs])
    with pytest.raises(TypeError, match=re.escape(pairs)):
        fm.Momentum(module.named_parameters(), lr=0.5)
    with pytest.raises(TypeError, match=re.escape(pairs)):
        fm.Momentum([{"params": module.named_parameters()}], lr=0.5)
    follow(descend, [("w", np.ones(2)), ("b", np.ones(1))], [pairs])
    assert torch.equal(module.weight, before - 0.5 - 0.5)


@pytest.mark.parametrize(
    "params",
    [
        [[np.ones(2), np.ones(1)]],
        {"layer": {"w": np.ones(2)}},
        [{"params": {"layer": {"w": np.ones(2)}}}],
        [{"params": [[np.ones(2), np.ones(1)]]}],
    ],
    ids=["list", "dict", "group of a dict", "group of a list"],
)
def test_nested_parameters_are_refused_with_a_flat_form(params):
    with pytest.raises(TypeError, match="got nested ones. Pass all arrays in one list, or in one dict with names"):
        fm.Momentum(params, lr=0.5)


@pytest.mark.parametrize(
    "value",
    ["abc", object(), {1, 2}, SimpleNamespace(dtype=3), np.array(["a"]), np.array([None])],
    ids=text_or_none,
)
def test_a_value_without_numbers_gets_no_advice_on_arrays(value):
    opt = fm.Momentum(np.ones(1), lr=0.5, backend="numpy")
    for call in (lambda: fm.step(value, None, value, lr=0.5), lambda: opt.step(value)):
        with pytest.raises(TypeError) as refused:
            call()
        assert "numpy." not in str(refused.value)


GRADIENTS = {
    "list": ([1.0, 0.5, -1.0], F8, ["numpy.array(..., dtype=numpy.float64)"]),
    "list for float32": ([1.0, 0.5, -1.0], F4, ["numpy.array(..., dtype=numpy.float32)"]),
    "int64": (np.arange(3), F4, ["numpy.asarray(..., dtype=numpy.float32)"]),
    "float64 for float32": (np.ones(3), F4, ["numpy.asarray(..., dtype=numpy.float32)"]),
    "float32 for float64": (np.ones(3, F4), F8, ["numpy.asarray(..., dtype=numpy.float64)"]),
    "float16": (np.ones(3, np.float16), F8, ["numpy.asarray(..., dtype=numpy.float64)"]),
    "real for complex": (np.ones(3), np.complex64, ["numpy.asarray(..., dtype=numpy.complex64)"]),
    "big-endian": (np.ones(3, ">f8"), F8, ["numpy.asarray(..., dtype=numpy.float64)"]),
    "strided": (np.arange(6.0)[::2], F8, [CONTIGUOUS]),
    "masked": (np.ma.ones(3), F8, [".data"]),
    "field": (np.ones(3, FIELD), F4, ["['weight']"]),
    "one of two fields": (np.ones(3, FIELDS), F4, ["['weight']", CONTIGUOUS]),
    "bfloat16 tensor": (torch.ones(3, dtype=torch.bfloat16), F4, [".to(torch.float32)"]),
    "bfloat16 tensor for float64": (torch.ones(3, dtype=torch.bfloat16), F8, [".to(torch.float64)"]),
    "float16 tensor": (torch.ones(3, dtype=torch.float16), F4, [".to(torch.float32)"]),
    "sparse tensor": (torch.ones(3).to_sparse(), F4, [".to_dense()"]),
    "conjugate tensor": (torch.ones(3, dtype=torch.complex64).conj(), np.complex64, [".resolve_conj()"]),
    "negative tensor": (torch.full((3,), 1 + 1j).conj().imag, F4, [".resolve_neg()"]),
    "bfloat16 of jax": (jax.numpy.ones(3, "bfloat16"), F4, ["numpy.array(..., dtype=numpy.float32)"]),
    "attributes": (ListWithAttributes([1.0, 2.0, 3.0]), F8, ["numpy.array(..., dtype=numpy.float64)"]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_refused_gradient_is_taken_in_the_advised_form(name):
    value, dtype, codes = GRADIENTS[name]
    p, q = np.zeros(3, dtype), np.zeros(3, dtype)
    settings = {"lr": 0.5, "momentum": 0.0, "backend": "numpy"}
    opt = fm.Momentum(q, **settings)
    follow(lambda g: fm.step(p, np.zeros(3, dtype), g, **settings), value, codes)
    g = follow(opt.step, value, codes)
    expected = -0.5 * (g.to_dense().resolve_conj().resolve_neg().numpy() if isinstance(g, torch.Tensor) else g)
    assert expected.any()
    assert np.array_equal(p, expected)
    assert np.array_equal(q, expected)


def test_a_gradient_of_a_dtype_that_equals_the_parameters_but_has_a_field():
    """Check that it is refused, or read as the numbers that it holds: Numba takes such an array for records."""
    p, q, g = np.zeros(3, F4), np.zeros(3, F4), np.ones(3, PLAIN_WITH_FIELD)
    follow(lambda grad: fm.step(p, np.zeros(3, F4), grad, lr=0.5), g, ["['weight']"])
    fm.Momentum(q, lr=0.5).step(g)
    assert (p == -0.5).all()
    assert (q == -0.5).all()


def test_a_gradient_in_a_list_is_taken_out_of_it():
    p, g = np.zeros(3), np.ones(3)
    opt = fm.Momentum(p, lr=0.5)
    with pytest.raises(TypeError, match="got a list of 1. Pass the array inside of it"):
        opt.step([g])
    opt.step(g)
    assert (p == -0.5).all()


@pytest.mark.parametrize(
    ("grads", "count", "code"),
    [
        (lambda: iter([np.ones(2), np.ones(2)]), 2, "list(...)"),
        (lambda: {"a": np.ones(2), "b": np.ones(2)}.values(), 2, "list(...)"),
        (lambda: np.ones((2, 2)), 2, "list(...)"),
        (lambda: {"a": np.ones(2), "b": np.ones(2)}, 2, "list(d.values())"),
        (lambda: np.ones(2), 1, "[...]"),
        (lambda: torch.ones(2, dtype=torch.float64), 1, "[...]"),
    ],
    ids=["iterator", "values", "stacked", "dict", "array", "tensor"],
)
def test_gradients_in_another_container_are_taken_in_a_list(grads, count, code):
    params = [np.zeros(2) for _ in range(count)]
    follow(fm.Momentum(params, lr=0.5).step, grads(), [code])
    assert all((p == -0.5).all() for p in params)


def test_an_array_with_attributes_of_other_classes_is_an_array():
    p, g = np.zeros(3), np.ones(3).view(Subclass)
    fm.Momentum(p, lr=0.5).step(g)
    fm.step(p, np.zeros(3), g, lr=0.5)
    fm.Momentum(p.view(Subclass), lr=0.5).step(g)
    assert (p == -1.5).all()


def test_state_is_advised_in_the_dtype_of_the_parameter():
    p, g = np.zeros(2, F8), np.ones(2, F8)
    for value, code in (
        ([0.0, 0.0], "numpy.array(..., dtype=numpy.float64)"),
        (np.zeros(2, F4), ".astype(numpy.float64)"),
        (np.zeros(2, int), ".astype(numpy.float64)"),
    ):
        v = follow(lambda state: fm.step(p, state, g, lr=0.5), value, [code])
        assert (v == 1).all()


def test_a_read_only_velocity_is_made_writeable_as_advised():
    opt = fm.Momentum(np.zeros(2), lr=0.5)
    opt.velocity.flags.writeable = False
    with pytest.raises(
        ValueError, match=re.escape("velocity of params: expected a writeable array; got a read-only")
    ) as e:
        opt.step(np.ones(2))
    assert ".flags.writeable = True" in str(e.value)
    opt.velocity.flags.writeable = True
    opt.step(np.ones(2))
    assert (opt.params == -0.5).all()


@pytest.mark.parametrize("make", [fm.jit.kernel, None], ids=["kernel", "SparseRows"])
def test_complex_arrays_are_passed_as_pairs_where_only_real_ones_are_served(make):
    p = np.ones((2, 2), np.complex64)

    def call(value):
        if make is None:
            fm.SparseRows(value, lr=0.5).step([0], np.ones((1, value.shape[1]), value.dtype))
        else:
            flat = value.reshape(-1)
            make("sgd")(flat, np.ones_like(flat), 0.5)

    follow(call, p, [".view(numpy.float32)"])
    assert (p[0] == 0.5 + (-0.5j)).all()


def test_strided_arrays_are_replaced_where_only_contiguous_ones_are_served():
    table = follow(lambda value: fm.SparseRows(value, lr=0.5, backend="numpy"), np.ones((3, 2)).T, [CONTIGUOUS])
    fm.SparseRows(table, lr=0.5, backend="numpy").step([0], np.ones((1, 3)))
    assert (table[0] == 0.5).all()
    kernel = fm.jit.kernel("sgd")
    p = follow(lambda value: kernel(value, np.ones(3), 0.5), np.ones(6)[::2], [CONTIGUOUS])
    assert (p == 0.5).all()


# Names.

NUMPY = {"backend": "numpy"}
CONTEXTS = {
    "step": lambda **given: fm.step(np.ones(2), np.zeros(2), np.ones(2), **({"lr": 0.5} | NUMPY | given)),
    "Momentum": lambda **given: fm.Momentum(np.ones(2), **({"lr": 0.5} | NUMPY | given)),
    "Optimizer": lambda **given: fm.Optimizer(np.ones(2), **({"lr": 0.5, "momentum": 0.9} | NUMPY | given)),
    "group": lambda **given: fm.Momentum([{"params": np.ones(2), "lr": 0.5} | given], **NUMPY),
    "SparseRows": lambda **given: fm.SparseRows(np.ones((2, 2)), **({"lr": 0.5} | NUMPY | given)),
    "jit.hyper": lambda **given: fm.jit.hyper("pytorch", **({"lr": 0.5, "momentum": 0.5} | given)),
    "theory": lambda **given: fm.theory.spectral_radius(0.5, 0.5, 1.0, rule="pytorch", **given),
    "assigned": lambda **given: [setattr(fm.Momentum(np.ones(2), lr=0.5, **NUMPY), *each) for each in given.items()],
    "assigned to a group": lambda **given: fm.Momentum(np.ones(2), lr=0.5, **NUMPY).groups[0].update(given),
}
VALUES = {
    **dict.fromkeys(("nesterov", "maximize", "lookahead", "correct", "skip_nonfinite"), True),
    "mask": np.ones(2, bool),
    "lr_scale": np.ones(2),
    "restart": 3,
    "keep_resets": 3,
    "backend": "cpu",
    "threads": 1,
}
"""Values in range for options that are no numbers from 0 to 1."""

UNKNOWN = (
    *("learning_rate", "eta", "mu", "beta", "beta1", "momentun", "dampenning", "weight_decy", "decoupled_weight_dacay"),
    *("max_grad_norm", "global_clipnorm", "clipnorm", "clipvalue", "use_nesterov", "look_ahead", "nestrov", "max_nrom"),
    *("maximise", "corect", "foreach", "fused", "l2", "skip_non_finite", "clip_vlue", "restarts", "masks", "lr_scales"),
    *("weight-decay", "LR", "Momentum", "keep_reset", "backnd", "max_norm", "clip_norm", "weight_decay", "nesterov"),
)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_hint_is_a_name_that_the_same_call_takes(context):
    proposed = {name: hint for name in UNKNOWN if (hint := proposal(context, name))}
    assert all(name != hint for name, hint in proposed.items())
    assert proposed["momentun"] == "momentum"
    for hint in set(proposed.values()):
        if context == "theory" and hint in ("lr", "momentum"):
            continue  # they are arguments, which the test passes by position
        try:
            CONTEXTS[context](**{hint: VALUES.get(hint, 0.5)})
        except TypeError as refused:  # a group does not take what all groups share, and the message says who does
            if context != "group" or "pass it as an argument of the constructor" not in str(refused):
                raise


def proposal(context, name):
    """Return the name that a message proposes for an unknown one; None if it proposes none, or the call takes it."""
    try:
        CONTEXTS[context](**{name: VALUES.get(name, 0.5)})
    except (TypeError, ValueError, AttributeError) as refused:
        message = str(refused)
    else:
        return None
    if name not in message:
        raise AssertionError(message)
    near = re.search(r"Did you mean (\w+)\?", message)
    return near and near[1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("nesterov", "pytorch_nesterov"), ("nag", "pytorch_nesterov"), ("NAG", "pytorch_nesterov")),
        *(("polyak", "heavy_ball"), ("heavyball", "heavy_ball"), ("heavy-ball", "heavy_ball")),
        *(("keras", "classical"), ("tensorflow", "classical"), ("torch", "pytorch"), ("optax", "pytorch")),
        *(("SGD", "sgd"), ("PyTorch", "pytorch"), ("pytorch nesterov", "pytorch_nesterov"), ("momentum", "pytorch")),
    ],
)
def test_a_rule_of_another_name_is_proposed(name, meant):
    with pytest.raises(ValueError, match=rf"rule must be one of .*; got '{name}'. Did you mean {meant}\?"):
        fm.Momentum(np.ones(2), lr=0.5, rule=name)
    fm.Momentum(np.ones(2), lr=0.5, rule=meant)


def test_proposed_rules_compute_what_their_names_say():
    """Check "torch", "keras", "nesterov" and "polyak" against the formulas; products with powers of two are exact."""
    for name, step in (
        ("torch", lambda p, q, v, g: (p - 0.25 * (0.5 * v + g), 0.5 * v + g)),
        ("nesterov", lambda p, q, v, g: (p - 0.25 * (g + 0.5 * (0.5 * v + g)), 0.5 * v + g)),
        ("keras", lambda p, q, v, g: (p + (0.5 * v - 0.25 * g), 0.5 * v - 0.25 * g)),
        ("polyak", lambda p, q, v, g: (p - 0.25 * g + 0.5 * (p - q), v)),
    ):
        rule = registry.SYNONYMS[name]
        opt = fm.Momentum(np.zeros(3), lr=0.25, momentum=0.5, rule=rule, backend="numpy")
        p, q, v = np.zeros((3, 3))
        for g in gradients(3, 4, kind="dyadic"):
            (p, v), q = step(p, q, v, g), p
            opt.step(g)
        assert np.array_equal(opt.params, p)


def test_settings_by_position_are_named_in_the_message():
    p, g = np.ones((2, 2)), np.ones((2, 2))
    for call, got in (
        (lambda: fm.Momentum(p, 0.5), "lr=0.5"),
        (lambda: fm.Momentum(p, 0.5, 0.9), "lr=0.5"),
        (lambda: fm.Momentum(p, "sgd"), "rule='sgd'"),
        (lambda: fm.Optimizer(p, "sgd", 0.5), "lr=0.5"),
        (lambda: fm.Optimizer(p, 0.5), "by its name: lr=0.1"),
        (lambda: fm.SparseRows(p, 0.5, lr=0.5), "lr=0.5"),
        (lambda: fm.step(p, np.zeros_like(p), g, 0.5), "lr=0.5"),
        (lambda: fm.step(p, np.zeros_like(p), g, "sgd"), "rule='sgd'"),
        (lambda: fm.Momentum(p, g), "lr=0.1; got an array"),
    ):
        with pytest.raises(TypeError, match=re.escape(got)):
            call()
    assert (p == 1).all()


# Options.


@pytest.mark.parametrize("option", ["weight_decay", "decoupled_weight_decay", "clip_value", "maximize", "nesterov"])
def test_an_option_becomes_a_rule_for_compiled_code(option):
    """Pass the rule that the message of jit.hyper names to the kernel: it does what step does with the option."""
    value = VALUES.get(option, 0.25)
    with pytest.raises(TypeError, match=f"{option}: rule 'pytorch' takes no such") as refused:
        fm.jit.hyper("pytorch", lr=0.5, momentum=0.5, **{option: value})
    code = re.search(r"Pass the rule (.*?\)|'\w+'),", str(refused.value))[1]
    rule = eval(code, {"fastmomentum": fm})
    given = {} if "without this option" in str(refused.value) else {option: value}
    p, v, g = random_arrays(5, 3)
    expected = p.copy(), v.copy()
    found = fm.jit.update(rule)(p, v, g, *fm.jit.hyper(rule, lr=0.5, momentum=0.5, **given))
    fm.step(*expected, g, lr=0.5, momentum=0.5, backend="numpy", **{option: value})
    assert np.array_equal(found, expected)


def test_the_folded_form_of_a_chain_keeps_its_stages():
    chain = fm.chain(fm.stages.scale(0.5), "pytorch")
    with pytest.raises(TypeError, match="Make the chain with the rule 'pytorch_nesterov', .*, without this option"):
        fm.jit.hyper(chain, lr=0.5, momentum=0.5, nesterov=True)
    rule = fm.chain(fm.stages.scale(0.5), "pytorch_nesterov")
    p, v, g = random_arrays(5, 3)
    expected = p.copy(), v.copy()
    fm.step(p, v, g, rule=rule, lr=0.5, momentum=0.5, backend="numpy")
    fm.step(*expected, g, rule=chain, lr=0.5, momentum=0.5, nesterov=True, backend="numpy")
    assert np.array_equal(p, expected[0])
    fm.jit.hyper(rule, lr=0.5, momentum=0.5)


def test_nesterov_without_a_folded_form_names_the_rule_to_use():
    p = np.ones(2)
    for rule, advice in (
        ("heavy_ball", "is the rule nesterov_positions, without nesterov=True"),
        ("nesterov_positions", "already: leave nesterov out"),
        ("lion", "; pytorch, classical and ema have one"),
    ):
        with pytest.raises(ValueError, match=f"nesterov=True: rule '{rule}' has no folded Nesterov form.*{advice}"):
            fm.Momentum(p, lr=0.5, rule=rule, nesterov=True)
    fm.Momentum(p, lr=0.5, rule="nesterov_positions")
    for rule in ("pytorch", "classical", "ema"):
        fm.Momentum(p, lr=0.5, rule=rule, nesterov=True)
        fm.Momentum(p, lr=0.5, rule=f"{rule}_nesterov", nesterov=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("clip_norm", 1.0), ("max_norm", 1.0), ("lookahead", True), ("restart", 3), ("skip_nonfinite", True)),
        *(("mask", np.ones((2, 2), bool)), ("lr_scale", np.ones((2, 2))), ("threads", 2), ("clip_value", 0.5)),
    ],
    ids=text_or_none,
)
def test_sparse_rows_and_theory_refuse_options_by_name(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        fm.SparseRows(np.ones((2, 2)), lr=0.5, **{name: value})
    opt = fm.SparseRows(np.ones((2, 2)), lr=0.5)
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
        opt.change(**{name: value})
    opt.step([0], np.ones((1, 2)))
    if "clip" in name or name == "max_norm":
        with pytest.raises(ValueError, match=f"{name}: expected None, as clipping is not linear"):
            fm.theory.spectral_radius(0.5, 0.5, 1.0, rule="pytorch", **{name: value})


def test_clipped_gradients_of_rows_are_those_of_clip_value():
    table, whole, v = np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2))
    grads = np.array([[3.0, -3.0]])
    with pytest.raises(ValueError, match=r"numpy.clip\(grads, -clip_value, clip_value\)") as refused:
        fm.SparseRows(table, lr=0.5, clip_value=1.0)
    code = str(refused.value).split(": ")[-1]
    fm.SparseRows(table, lr=0.5).step([1], eval(code, {"numpy": np, "grads": grads, "clip_value": 1.0}))
    fm.step(whole, v, np.array([[0.0, 0.0], [3.0, -3.0]]), lr=0.5, clip_value=1.0)
    assert np.array_equal(table, whole)


def test_rules_that_are_not_linear_are_refused_without_names_of_the_package():
    for call in (
        lambda: fm.SparseRows(np.ones((2, 2)), lr=0.5, rule="lion"),
        lambda: fm.theory.spectral_radius(0.5, 0.5, 1.0, rule="signum"),
    ):
        with pytest.raises(ValueError, match="rule: expected one that is linear in p, state and g") as refused:
            call()
        assert "LinearForm" not in str(refused.value)


def test_curvature_and_decay_are_summed_as_advised():
    with pytest.raises(ValueError, match="Weight decay adds λ to each curvature, if coupled: pass the sums"):
        fm.theory.spectral_radius(0.5, 0.5, 0.0, rule="pytorch", weight_decay=0.25)
    expected = fm.theory.spectral_radius(0.5, 0.5, 0.25, rule="pytorch")
    decayed = fm.theory.spectral_radius(0.5, 0.5, 1e-300, rule="pytorch", weight_decay=0.25)
    assert expected == pytest.approx(decayed, rel=1e-12)  # two ways to the same matrix


# Groups, attributes and conversions.


def test_shared_settings_of_groups_are_given_where_the_message_says():
    def groups(**given):
        return [{"params": np.ones(2), **given}, {"params": np.ones(2)}]

    for name, value in (("max_norm", 1.0), ("lookahead", True), ("restart", 3), ("threads", 1), ("keep_resets", 2)):
        with pytest.raises(
            TypeError, match=f"{name}, as all groups share it: pass it as an argument of the constr"
        ) as e:
            fm.Momentum(groups(**{name: value}), lr=0.5)
        fm.Momentum(groups(), lr=0.5, **{name: value})
        opt = fm.Momentum(groups(), lr=0.5, backend="numpy")
        with pytest.raises(TypeError, match=f"expected no {name}"):
            opt.add_group({"params": np.ones(1), name: value})
        if f"opt.{name} = value" in str(e.value):
            setattr(opt, name, value)
            assert getattr(opt, name) == value
        with pytest.raises((TypeError, AttributeError), match=name) as refused:
            opt.groups[0][name] = value
        if "as an attribute of the optimiser" in str(refused.value):
            setattr(opt, name, value)
        opt.step([np.ones(2), np.ones(2)])


def test_deleted_settings_have_the_advised_value():
    opt = fm.Momentum(np.ones(2), lr=0.5, weight_decay=0.5, max_norm=1.0)
    for name, value in (("weight_decay", 0.0), ("max_norm", None)):
        with pytest.raises(TypeError, match=f"{name}: a setting cannot be deleted; assign {value}, which turns it off"):
            del opt.groups[0][name]
        opt.groups[0][name] = value
        assert opt.groups[0][name] == value
    with pytest.raises(TypeError, match="lr: a setting cannot be deleted; assign another value"):
        del opt.groups[0]["lr"]


def test_arrays_are_changed_as_messages_about_attributes_say():
    p, g = np.ones(2), np.ones(2)
    opt = fm.Momentum(p, lr=0.5)
    for name in ("velocity", "state"):
        with pytest.raises(AttributeError, match=re.escape("array[...] = values")):
            setattr(opt, name, g)
        getattr(opt, name)[...] = 2.0
    opt.step(g)
    assert (opt.velocity == F8(0.9) * 2 + 1).all()
    with pytest.raises(AttributeError, match=re.escape("opt.replace(i, array)")):
        opt.params = np.zeros(2)
    opt.replace(0, np.zeros(2))
    opt.step(g)
    assert (opt.params == -0.5 * opt.velocity).all()


def test_a_trace_is_stopped_as_advised_before_arrays_change():
    opt = fm.Momentum([np.ones(2)], lr=0.5)
    trace = opt.trace()
    for change in (lambda: opt.add_group({"params": np.ones(1)}), lambda: opt.replace(0, np.zeros(2))):
        with pytest.raises(RuntimeError, match=r"call its stop\(\)"):
            change()
    trace.stop()
    opt.add_group({"params": np.ones(1)})
    opt.step([np.ones(2), np.ones(1)])


@pytest.mark.parametrize("method", ["to_torch", "to_optax", "to_keras"])
@pytest.mark.parametrize("rule", fm.rules.names()[:14])
def test_a_conversion_that_is_advised_is_possible(rule, method):
    arguments = [np.asarray] if method == "to_torch" else []
    opt = fm.Momentum(np.ones(2), lr=0.5, momentum=0.5, rule=rule, backend="numpy")
    opt.step(np.ones(2))
    try:
        getattr(opt, method)(*arguments)
    except ValueError as refused:
        advice = re.search(r"opt.convert\('(\w+)'\)", str(refused))
        linear = fm.rules.find(rule).name in ("sgd", "heavy_ball", "nesterov_positions") or rule.split("_")[0] in (
            *("pytorch", "classical"),
            *("ema",) * (rule != "ema_corrected"),
        )
        assert (advice is not None) == linear
        if advice:
            getattr(opt.convert(advice[1]), method)(*arguments)


def test_a_look_ahead_goes_on_in_the_folded_form_as_advised():
    opt = fm.Momentum(np.ones(2), lr=0.25, momentum=0.5, lookahead=True, backend="numpy")
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="use the folded form, with opt.point as parameters"):
        opt.to_torch(np.asarray)
    folded = fm.Momentum(opt.point.copy(), lr=0.25, momentum=0.5, nesterov=True, backend="numpy")
    folded.velocity[...] = opt.velocity
    for g in random_arrays(2, 3):
        opt.step(g)
        folded.step(g)
    np.testing.assert_allclose(folded.params, opt.point, rtol=1e-14)  # another order of the same sums
    folded.to_torch(np.asarray)
    with pytest.raises(ValueError, match="lookahead: expected False") as refused:
        fm.Momentum.from_torch({"state": {}, "param_groups": [{"lr": 0.5, "params": [0]}]}, np.ones(2), lookahead=True)
    assert "pass" not in str(refused.value)


def test_a_proximal_map_takes_the_advised_rules():
    lasso = fm.stages.soft_threshold(0.5)
    with pytest.raises(ValueError, match="heavy_ball or nesterov_positions.*use heavy_ball with momentum=0"):
        fm.chain("pytorch", lasso)
    p = np.array([2.0])
    rule = fm.chain("heavy_ball", lasso)
    fm.Momentum(p, lr=0.5, momentum=0.0, rule=rule, backend="numpy").step(np.array([1.0]))
    assert p == 1.25  # soft threshold of 2 − 0.5 at 0.5·0.5
    fm.chain("nesterov_positions", lasso)


def test_minimize_names_the_rule_to_pass_for_others():
    def f(x):
        return float(x @ x)

    with pytest.raises(
        ValueError, match="pass 'heavy_ball', and in place of their Nesterov forms 'nesterov_positions'"
    ):
        fm.minimize(f, np.ones(2), rule="pytorch")


def test_a_function_that_a_rule_calls_is_decorated_as_advised():
    def decay(v, g, mu):
        return mu * v + g

    def make(called):
        def rule(p, v, g, lr, momentum):
            v = called(v, g, momentum)
            return p - lr * v, v

        return fm.Rule(rule)

    advice = r"decorate .* with numba.extending.register_jitable"
    p, v, g = np.ones(2), np.zeros(2), np.ones(2)
    with pytest.raises(TypeError, match=f"the rule cannot be compiled; {advice}"):
        fm.step(p, v, g, rule=make(decay), lr=0.5)
    with pytest.raises(TypeError, match=f"it calls a compiled function; {advice}"):
        make(numba.njit(decay))
    fm.step(p, v, g, rule=make(numba.extending.register_jitable(decay)), lr=0.5)
    assert (p == 0.5).all()


def test_sparse_rows_ignore_options_that_are_off():
    off = {"max_norm": None, "clip_norm": None, "clip_value": None, "lookahead": False, "skip_nonfinite": False}
    opt = fm.SparseRows(np.ones((2, 2)), lr=0.5, backend="numpy", **off, mask=None, restart=None, threads=None)
    opt.step([0], np.ones((1, 2)))
    assert (opt.param[0] == 0.5).all()


def test_flatten_takes_arrays_in_the_advised_form():
    flat, _ = fm.flatten(follow(fm.flatten, {"a": np.ones(2), "b": np.ones(1)}, ["list(d.values())"]))
    assert flat.shape == (3,)
    follow(lambda value: fm.flatten([value]), np.arange(3), ["numpy.asarray(..., dtype=numpy.float64)"])
    follow(lambda value: fm.flatten([value]), [1.0, 2.0], ["numpy.array(..., dtype=numpy.float64)"])


def test_a_reset_without_reason_names_the_argument():
    opt = fm.Momentum(np.ones(2), lr=0.5)
    for arguments in ((), (None,), ("",), (3,)):
        with pytest.raises((TypeError, ValueError), match="reason") as refused:
            opt.reset(*arguments)
        assert not re.search(r"\b_[A-Za-z]", str(refused.value))
    opt.reset("the data changed")
    assert len(opt.resets) == 1


def test_a_group_that_is_no_list_is_told_to_be_put_into_one():
    p = np.ones(2)
    for group in (
        {"params": p, "lr": 0.1},
        {"params": [p], "lr": np.array(0.1)},
        {"params": {"w": p}, "momentum": 0.5},
    ):
        with pytest.raises(TypeError, match=r"params: expected groups in a list; got one group. Pass \[\{'params'"):
            fm.Momentum(group, lr=0.5)
        fm.Momentum([group], lr=0.5)
