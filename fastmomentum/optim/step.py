"""The function step(), which does one update without an object, and flatten(), which joins many arrays into one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from math import inf
from typing import Any, Never, NoReturn

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.advice import how_to_list, is_tensor
from fastmomentum.backends import host_arrays
from fastmomentum.backends.cpu import threads as thread_pool
from fastmomentum.backends.cuda.device_array import is_on_device
from fastmomentum.backends.tensors import count_writes, increment_versions
from fastmomentum.checks import FINITE, RANGES, Array
from fastmomentum.optim.state import check_state
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import bounded, kept_with_rule
from fastmomentum.rules.options import Options, resolve, resolve_options
from fastmomentum.rules.record import check_hyper, resolve_values
from fastmomentum.rules.registry import find
from fastmomentum.rules.row import Input, RowFunction, inner_limits, make_row


def step(
    param: Any,
    state: Any,
    grad: Any,
    *positional: Never,
    rule: str | Rule = "pytorch",
    lr: float | None = None,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled_weight_decay: float = 0.0,
    maximize: bool = False,
    clip_value: float | None = None,
    backend: str | None = None,
    threads: int | None = None,
    stream: Any = None,
    **hyper: float,
) -> None:
    """Update `param` and `state` in place, in one pass over memory, by the same formula at every step.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v

    Options change the gradient first, in torch's order: clip by value, negate (maximize), add weight_decay·p. Then
    follows p ← p·(1 − lr·decoupled_weight_decay), then the rule. A first step from v = 0 is dampened like all others,
    unlike that of torch.optim.SGD and of :class:`Momentum`.

    Parameters
    ----------
    param : array
        An array of any shape; it is written. A NumPy array of float32, float64, complex64 or complex128, of any dense
        layout: in C or Fortran order, transposed, channels-last or reversed, but without holes between its elements; or
        a torch tensor of this kind in host memory, a leaf, which may require a gradient. Or a C-contiguous array of
        float32 or float64 in the memory of a CUDA device: Numba's, CuPy's, a torch tensor, anything with
        ``__cuda_array_interface__`` or DLPack.
    state : array, tuple of arrays, or None
        The state that the rule declares, like `param` in dtype, shape and strides; it is written. For most rules it is
        the velocity, zero before the first step; for heavy_ball and nesterov_positions the previous position, at first
        a copy of `param`; None for sgd.
    grad : array
        Like `param` in dtype, shape and strides; it is only read. NaN and infinities in it propagate as in NumPy. An
        array of another library in host memory is read without a copy: a torch tensor, a JAX array, anything with the
        buffer protocol or DLPack. For a `param` without dimensions, a NumPy scalar serves, too.
    rule : str, Rule or chain
        The update rule; :func:`fastmomentum.rules.names` lists the names.
    lr : float
        Learning rate, ≥ 0; only rules that do not take it do without.
    momentum : float
        μ (β in the ema forms), in [0, 1]; rules that do not declare it (sgd) ignore it.
    dampening : float
        τ in [0, 1], for the rule "pytorch".
    nesterov : bool
        Take the rule's folded Nesterov form.
    weight_decay, decoupled_weight_decay : float
        Coupled (L2) and decoupled (AdamW's) decay, ≥ 0.
    maximize : bool
        Ascend instead of descend.
    clip_value : float, optional
        Clip every element of the gradient to [−clip_value, clip_value]; > 0.
    backend : {None, "numpy", "cpu", "cuda"}
        None selects the compiled backend of the arrays' memory, "cpu" or "cuda"; "numpy" is the reference. All give the
        same bits.
    threads : int
        The greatest number of threads to use, −1 for all; None for the number that :func:`fastmomentum.set_threads`
        set, which is 1 at first. Fewer threads are used if more would be slower or unsafe; the bits are the same.
    stream : optional
        For arrays on a device the stream to run in: a stream of CUDA, Numba, torch or CuPy, or its handle; None for the
        stream of the arrays. The call does not wait for the device.
    **hyper : float
        The rule's other hyper-parameters (momentum_next, the values of a chain's stages, a user rule's own); for
        ema_corrected also step, the number of the update, from 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or value; nothing has been written then.

    Notes
    -----
    Which NaN comes out of an operation on NaNs, its sign and payload, is left open. C's fesetround sets the rounding
    mode of the calling thread alone; the threads of OpenMP keep the mode in which they started. In another mode than
    rounding to nearest, the bits therefore depend on the number of threads.

    The real and imaginary parts of complex numbers are updated as two real numbers, as torch.optim.Adam does. Rules
    that are linear in p, state and g, such as pytorch, then compute their formula in complex arithmetic. clip_value,
    and the signs in signum and lion, act on each part.

    A write to the memory of a torch tensor is counted in the tensor's version, also for ``tensor.detach().numpy()``, so
    that torch's backward refuses old values. An array does not know the tensors that ``torch.from_numpy`` made of it.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> for g in ([0.5, -0.25], [0.5, 0.25]):
    ...     fm.step(p, v, np.array(g), lr=0.5, momentum=0.5)
    >>> p, v
    (array([0.375 , 2.0625]), array([0.75 , 0.125]))
    """
    if positional:
        checks.refuse_positional("step", positional)
    is_plain = type(param) is np.ndarray
    on_device = backend == "cuda" or (backend is None and not is_plain and is_on_device(param))
    if on_device:
        param, state, grad, backend = *_views(param, state, grad), "cuda"
    elif stream is not None:
        raise TypeError(f"stream: expected None, as the arrays are on the host; got {checks.describe(stream)}")
    elif not is_plain:
        param, state = _views_of_written(host_arrays.view, param, state)
    param = checks.array("param", param, dense=not on_device)
    # fmt: off
    settings = (rule, param.dtype, backend, threads, lr, momentum, dampening, nesterov, weight_decay,
                decoupled_weight_decay, maximize, clip_value)
    # fmt: on
    try:
        plan = _plan_of_rule if isinstance(rule, Rule) else _plan_of_name
        update, kernel, row, is_complex = plan(*settings, **hyper)
    except (TypeError, ValueError):  # an argument cannot be hashed (a 0-d array), or is wrong: then it raises again
        update, kernel, row, is_complex = _plan(*settings, **hyper)
    dense = not on_device and not param.flags.c_contiguous
    arrays = (param, *check_state(update, state, param, dense))
    if type(grad) is not np.ndarray and not on_device:
        grad = host_arrays.read("grad", grad, param)
    grad = checks.array("grad", grad, like=param, write=False, dense=dense)
    if on_device:
        _launch(update, (*arrays, grad), row, stream)
        return
    if param.base is not None:  # it may view a tensor; counted before the write, as Ctrl-C can come after it
        count_writes(arrays)
    if dense or is_complex:
        arrays, grad = tuple(map(host_arrays.flat_view, arrays)), host_arrays.flat_view(grad)
    elif param.ndim != 1:
        arrays, grad = tuple(array.reshape(-1) for array in arrays), grad.reshape(-1)
    done = None if threads == 1 or backend == "numpy" else _in_threads(update, arrays, grad, row, threads)
    if not (kernel(arrays, grad, row) if done is None else done):
        _refuse_overlap(("param", *update.slots, "grad"), (*arrays, grad))


def _views(param: Any, state: Any, grad: Any) -> tuple[Any, Any, Any]:
    """Return views of the arrays on a device."""
    backends.choose("cuda", ())
    view = backends.arrays_of("cuda").view
    return *_views_of_written(view, param, state), view("grad", grad)


def _views_of_written(view: Callable[[str, Any], Any], param: Any, state: Any) -> tuple[Any, Any]:
    """Return views of the parameter and its state; ``view(name, array)`` makes them."""
    if isinstance(state, tuple):
        return view("param", param), tuple(view(f"state[{i}]", slot) for i, slot in enumerate(state))
    return view("param", param), None if state is None else view("state", state)


def _launch(update: Rule, arrays: tuple[Any, ...], row: tuple[Any, ...], stream: Any) -> None:
    """Update arrays on a device; the last array is the gradient."""
    from fastmomentum.backends.cuda import arrays as device_arrays
    from fastmomentum.backends.cuda import kernels, streams

    names = ("param", *update.slots, "grad")
    device = device_arrays.one_device(names, arrays)
    checks.disjoint_intervals(names, arrays, read=1)
    with device_arrays.on(device):
        kernels.run_one(update, arrays, row, device, streams.handle_of(stream))
    increment_versions([array.owner for array in arrays[:-1] if is_tensor(array.owner)])


def _in_threads(update: Rule, arrays: Any, grad: Any, row: Any, threads: int | None) -> bool | None:
    """Run the threaded kernel and return whether it did the update; None if the serial kernel must run."""
    count = thread_pool.worthwhile(grad.size, threads)
    if count == 1:
        return None
    from fastmomentum.backends.cpu import kernels

    kernel = kernels.kernel(update, grad.dtype, parallel=True)
    region = thread_pool.region()
    if region is None:
        return None
    with region:
        return kernel(arrays, grad, row, count)


def _plan(
    rule: str | Rule,
    dtype: np.dtype[Any],
    backend: str | None,
    threads: int | None,
    lr: float | None,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    decoupled_weight_decay: float,
    maximize: bool,
    clip_value: float | None,
    /,
    **hyper: float,
) -> tuple[Rule, Any, tuple[Any, ...], bool]:
    """Return the rule, the kernel and the hyper-parameters of a step, and whether `dtype` is complex.

    All is computed once for each set of settings. If only values are new, the rule and the kernel are those of the last
    step, and the row function checks the values.
    """
    rate, clip = 0.0 if lr is None else lr, inf if clip_value is None else clip_value
    if type(rate) is type(momentum) is type(dampening) is type(weight_decay) is type(decoupled_weight_decay) is float:
        off = (lr is None, False, not dampening, not weight_decay, not decoupled_weight_decay, clip_value is None)
        try:
            arguments: Any = (dtype, backend, threads, nesterov, maximize, off, *hyper)
            form = _form_of_name(rule, *arguments) if isinstance(rule, str) else _form(find(rule), *arguments)
        except (TypeError, ValueError):  # an argument cannot be hashed
            form = None
        are_floats = type(clip) is float and (not hyper or {*map(type, hyper.values())} == {float})
        if form is not None and are_floats:
            update, kernel, is_complex, row_of = form
            if threads is not None:  # a look-up costs little beside an update that is worth several threads
                kernel = _kernel(backends.choose(backend, ()), update, dtype)
            row = row_of((rate, momentum, dampening, weight_decay, decoupled_weight_decay, clip, *hyper.values()), 1)
            if row is not None:
                return update, kernel, row, is_complex
    name = backends.choose(backend, ())
    checks.threads(threads)
    _refuse_momentum_options(rule, hyper)
    chosen = {
        **({} if lr is None else {"lr": lr}),
        "momentum": momentum,
        "dampening": dampening,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
        "clip_value": clip_value,
        **hyper,
    }
    update, given = resolve(rule, chosen, TAKEN)
    if lr is None and "lr" in update.parameters:
        checks.number("lr", lr, update.allowed["lr"])
    real = checks.real_dtype(dtype)
    row = check_hyper(update, given, real)
    return update, _kernel(name, update, dtype), row, dtype.kind == "c"


_plan_of_name: Callable[..., tuple[Rule, Any, tuple[Any, ...], bool]] = bounded(1024)(_plan)
_plan_of_rule: Callable[..., tuple[Rule, Any, tuple[Any, ...], bool]] = kept_with_rule(_plan)


def _kernel(backend: str, rule: Rule, dtype: np.dtype[Any]) -> Any:
    """Return the serial kernel for one array of this dtype; None on a device."""
    return None if backend == "cuda" else backends.one_array_kernel(backend, rule, checks.real_dtype(dtype))


OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "decoupled_weight_decay", "clip_value")
"""The numeric options of step(), in the order of its arguments."""

TAKEN = Options((*OPTIONS[3:], "nesterov", "maximize", "rule", "backend", "threads", "stream"), "fastmomentum.step")
MOMENTUM_ALONE = ("max_norm", "clip_norm", "lookahead", "skip_nonfinite", "correct", "restart", "mask", "lr_scale")
"""The options of Momentum that step() does not take."""


@kept_with_rule
def _form(
    rule: Rule,
    dtype: np.dtype[Any],
    backend: str | None,
    threads: int | None,
    nesterov: bool,
    maximize: bool,
    off: tuple[bool, ...],
    *hyper: str,
) -> tuple[Rule, Any, bool, RowFunction] | None:
    """Return the rule, the kernel, whether `dtype` is complex, and the row function; `off` says which options are off.

    The result is None if the arguments are refused; then the exact checks say why.
    """
    inputs = [name for name, is_off in zip(OPTIONS, off) if not is_off]
    given = dict.fromkeys(inputs, 0.5) | dict.fromkeys(hyper, 1.0)  # any values that turn the options on
    try:
        _refuse_momentum_options(rule, hyper)
        update, used = resolve_options(rule, nesterov=nesterov, maximize=maximize, **given)
        if update.summing_links:
            return None
        resolve_values(update, used, lambda name, value, allowed: value)
        name = backends.choose(backend, ())
        checks.threads(threads)
    except (TypeError, ValueError, RuntimeError):
        return None
    real = checks.real_dtype(dtype)
    allowed = {name: update.allowed.get(name) or RANGES.get(name, FINITE) for name in given}
    limits: list[Input] = [
        (name, *inner_limits(allowed[name], real)) if name in given else (f"no {name}", None, None)
        for name in (*OPTIONS, *hyper)
    ]
    return update, _kernel(name, update, dtype), dtype.kind == "c", make_row(update, tuple(limits), real)


@bounded(1024)
def _form_of_name(name: str, *arguments: Any) -> tuple[Rule, Any, bool, RowFunction] | None:
    """Return the result of :func:`_form` for the rule of this name: a cache of values is faster than one of a rule."""
    return _form(find(name), *arguments)


def _refuse_momentum_options(rule: str | Rule, hyper: Iterable[str]) -> None:
    """Check that no option of Momentum is given, which needs to know all gradients and steps."""
    for option in MOMENTUM_ALONE:
        if option in hyper and option not in find(rule).parameters:
            raise TypeError(f"{option}: expected for Momentum alone, which knows all gradients and steps")


def _refuse_overlap(names: Sequence[str], arrays: Sequence[Any]) -> NoReturn:
    """Raise a ValueError that names two of these dense arrays that share memory; the caller found that two do."""
    for (ours, first), (theirs, second) in combinations(zip(names, arrays, strict=True), 2):
        if np.may_share_memory(first, second):
            raise ValueError(f"{ours}: expected memory of its own; got memory that it shares with {theirs}")
    raise AssertionError("no two of these arrays share memory")


def flatten(arrays: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Return one flat array with the contents of `arrays`, one after another, and views of it in their shapes.

    An update of the flat array updates all views. For thousands of small arrays that is faster than an update of each.
    Flatten the gradients once, too, and write the gradients of each step to their views. Single arrays cannot be left
    out of a step then.

    Parameters
    ----------
    arrays : sequence of ndarray
        Arrays of one dtype: float32, float64, complex64 or complex128. They may have any strides, as they are copied.

    Returns
    -------
    flat : ndarray, 1-D
        The contents of all arrays.
    views : list of ndarray
        Contiguous views of `flat`, in the order of `arrays`.

    Raises
    ------
    TypeError, ValueError
        If `arrays` is not a sequence of arrays, or if an array has another dtype than the first.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> flat, (weights, bias) = fm.flatten([np.ones((2, 3)), np.zeros(2)])
    >>> opt = fm.Momentum(flat, lr=0.5)
    >>> grads, (of_weights, of_bias) = fm.flatten([np.full((2, 3), 0.5), np.ones(2)])
    >>> opt.step(grads)
    >>> weights[0], bias
    (array([0.75, 0.75, 0.75]), array([-0.5, -0.5]))
    """
    if not isinstance(arrays, list | tuple | Sequence):
        raise TypeError(
            f"arrays: expected a sequence of arrays; got {checks.describe(arrays)}"
            + (how_to_list(arrays, len(arrays)) if isinstance(arrays, Mapping) else "")
        )
    # A copy in C order has no holes, as the checks require.
    copies = [array.copy(order="C") if isinstance(array, np.ndarray) else array for array in arrays]
    given: list[Any] = [checks.array(f"arrays[{i}]", array, write=False, dense=True) for i, array in enumerate(copies)]
    if not given:
        raise ValueError("arrays: expected at least one; got none")
    for i, array in enumerate(given):
        if array.dtype != given[0].dtype:
            raise TypeError(f"arrays[{i}]: expected {given[0].dtype}, as the first has; got {array.dtype}")
    flat = np.concatenate([array.reshape(-1) for array in given])
    ends = np.cumsum([array.size for array in given])
    views = [flat[end - array.size : end].reshape(array.shape) for end, array in zip(ends, given)]
    return flat, views
