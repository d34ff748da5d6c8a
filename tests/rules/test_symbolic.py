"""Symbolic execution of a rule refuses all but assignments, one return and the allowed functions."""

import ast
import inspect
import textwrap

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.rules.momentum import _descend
from tests.helpers.reference import RULES, VARIANTS


def literal(p, v, g, lr, mu):
    return p - 0.5 * lr * v, v


def literal_inside_a_function(p, v, g, lr, mu):
    return p - lr * np.maximum(0.0, g), v


def constant_result(p, v, g, lr, mu):
    return p - lr * g, 0.0


def branch(p, v, g, lr, mu):
    return (p - lr * g, v) if g > v else (p, v)


def truth(p, v, g, lr, mu):
    return p - lr * (g or v), v


def power(p, v, g, lr, mu):
    return p - lr * g**2, v


def exponential(p, v, g, lr, mu):
    return p - lr * np.exp(g), v


def reduction(p, v, g, lr, mu):
    return p - lr * np.add.reduce(g), v


def conversion(p, v, g, lr, mu):
    return p - lr * float(g), v


def in_place(p, v, g, lr, mu):
    v *= mu
    return p - lr * v, v


FLAG = True


def global_branch(p, v, g, lr, mu):
    if FLAG:
        p = p - lr * g
    return p, v


def loop(p, v, g, lr, mu):
    for _ in (lr, mu):
        p = p - lr * g
    return p, v


class Callable:
    def __call__(self, p, v, g, lr, mu):
        return p - lr * g, v


def too_few_results(p, v, g, lr, mu):
    return p - lr * g


def too_few_arguments(p, v, g, lr):
    return p - lr * g, v


REFUSED = {
    literal: "literal 0.5",
    literal_inside_a_function: "literal 0.0",
    constant_result: "literal 0.0",
    branch: "branches",
    truth: "branches",
    power: "power",
    exponential: r"numpy\.exp",
    reduction: r"numpy\.add",
    conversion: "converts",
    in_place: "in place",
    global_branch: "branches or loops",
    loop: "branches or loops",
    Callable(): "plain Python function",
    too_few_results: "tuple of 2",
    too_few_arguments: "positional arguments",
}


@pytest.mark.parametrize(("function", "reason"), list(REFUSED.items()), ids=lambda x: getattr(x, "__name__", ""))
def test_rule_outside_the_vocabulary_is_refused_with_the_reason(function, reason):
    with pytest.raises(TypeError, match=reason):
        fm.Rule(function)


FUNCTIONS = {"minimum", "maximum", "absolute", "sqrt"}


NODES = (
    *(ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Tuple, ast.Name, ast.Load, ast.Store),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.UnaryOp, ast.USub, ast.Call, ast.Attribute),
)


STAGES = ("scale", "clip_value", "maximize", "weight_decay", "decoupled_weight_decay", "box", "soft_threshold")


def written_functions():
    from fastmomentum.rules import averages

    yield _descend
    for name in (*RULES, *VARIANTS):
        yield from fm.rules.find(name).functions
    for follower in (averages.MEAN, averages.EXPONENTIAL, averages.FROM_FIRST_UPDATE):
        yield from follower.functions
    for name in STAGES:
        yield getattr(fm.stages, name).function


@pytest.mark.parametrize("function", list(written_functions()), ids=lambda f: f.__name__)
def test_functions_of_the_package_use_the_vocabulary_alone(function):
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition.body[-1], ast.Return)
    assert all(isinstance(statement, ast.Assign) for statement in definition.body[:-1])
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    for node in ast.walk(definition):
        assert isinstance(node, NODES), ast.dump(node)
        if isinstance(node, ast.Call):
            assert isinstance(node.func, ast.Attribute), ast.dump(node)
            assert ast.unparse(node.func.value) == "np"
            assert node.func.attr in FUNCTIONS
