"""Run ``fastmomentum demo``: train a small network on handwritten digits by one rule after the other."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.datasets import load_digits

import fastmomentum as fm
from fastmomentum.cli.errors import UsageError, system_errors
from fastmomentum.cli.terminal import Terminal
from fastmomentum.plots.curves import losses

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


class Settings(TypedDict, total=False):
    """Hold the arguments of Momentum that differ between the runs."""

    rule: str
    lr: float
    nesterov: bool


HIDDEN, EPOCHS, BATCH, MOMENTUM, LR = 256, 40, 64, 0.9, 0.02
RUNS: dict[str, Settings] = {
    "gradient descent": {"rule": "sgd", "lr": LR},
    "pytorch": {"rule": "pytorch", "lr": LR},
    "classical": {"rule": "classical", "lr": LR},
    "ema": {"rule": "ema", "lr": LR / (1 - MOMENTUM)},
    "Nesterov": {"rule": "pytorch", "nesterov": True, "lr": LR},
}
WITHOUT_MOMENTUM = "gradient descent"
OTHER_LR = 0.001
"""The lr of a rule that is not among the usual ones, unless one is given."""


def chosen_runs(names: list[str] | None) -> dict[str, Settings]:
    """Return the usual runs, or gradient descent and a run for each NAME or NAME=LR that was asked for.

    Raises
    ------
    UsageError
        If there is no such rule, or its lr is not a number ≥ 0, or it needs other settings.
    """
    found = dict(list(RUNS.items())[: 1 if names else None])
    for text in names or ():
        name, _, rate = text.partition("=")
        try:
            usual = RUNS.get(name, {"lr": OTHER_LR})["lr"]
            found[text] = {"rule": name, "lr": float(rate) if rate else usual}
            fm.Optimizer(np.zeros(1, np.float32), momentum=MOMENTUM, **found[text])
        except (TypeError, ValueError) as error:
            raise UsageError(f"--rule {text}: {str(error).removeprefix('rule: ')}") from error
    return found


class Digits(NamedTuple):
    """Hold scikit-learn's 8 × 8 images of digits, scaled to [0, 1]; every fifth image is in the test set."""

    train: tuple[Floats, Integers]
    test: tuple[Floats, Integers]


class Run(NamedTuple):
    """Hold the results of one rule.

    Attributes
    ----------
    losses : list of float
        The training loss after each tenth of the run.
    accuracy : float
        The share of test images that are classified correctly.
    seconds, seconds_numpy : float
        The time of all updates, and of these updates by the NumPy backend.
    same_bits : bool
        Whether parameters and state were those of the NumPy backend, bit by bit, after every update.
    """

    losses: list[float]
    accuracy: float
    seconds: float
    seconds_numpy: float
    same_bits: bool


def load() -> Digits:
    """Return the images and labels of the training set and the test set."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    in_test = np.arange(len(labels)) % 5 == 0
    return Digits((images[~in_test], labels[~in_test]), (images[in_test], labels[in_test]))


class Network:
    """Compute a network: 64 inputs, a hidden layer of tanh, and 10 classes by softmax; one array has all parameters."""

    shapes = ((64, HIDDEN), (HIDDEN,), (HIDDEN, 10), (10,))
    size = sum(int(np.prod(shape)) for shape in shapes)

    def start(self) -> Floats:
        """Return the initial parameters, the same in every run."""
        flat = np.zeros(self.size, np.float32)
        rng = np.random.default_rng(0)
        for weights in self.views(flat)[::2]:
            weights[...] = rng.standard_normal(weights.shape) / np.sqrt(len(weights))
        return flat

    def views(self, flat: Floats) -> list[Floats]:
        """Return the weights and biases of the layers, as views of the flat array."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes)]

    def forward(self, flat: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Return the hidden activations, and the logarithms of the class probabilities."""
        w1, b1, w2, b2 = self.views(flat)
        hidden = np.tanh(x @ w1 + b1)
        scores = hidden @ w2 + b2
        scores -= scores.max(axis=1, keepdims=True)
        return hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def loss(self, flat: Floats, x: Floats, y: Integers) -> float:
        """Return the mean cross-entropy."""
        return float(-self.forward(flat, x)[1][np.arange(len(y)), y].mean())

    def gradient(self, flat: Floats, x: Floats, y: Integers, out: Floats) -> None:
        """Write the gradient of the loss into the flat array `out`."""
        hidden, log_probabilities = self.forward(flat, x)
        error = np.exp(log_probabilities)
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        grad_w1, grad_b1, grad_w2, grad_b2 = self.views(out)
        np.matmul(hidden.T, error, out=grad_w2)
        error.sum(axis=0, out=grad_b2)
        hidden_error = error @ self.views(flat)[2].T * (1 - hidden * hidden)
        np.matmul(x.T, hidden_error, out=grad_w1)
        hidden_error.sum(axis=0, out=grad_b1)


def batches(count: int) -> Iterator[Integers]:
    """Yield the row numbers of shuffled batches, the same in every run."""
    rng = np.random.default_rng(1)
    for _ in range(EPOCHS):
        yield from np.array_split(rng.permutation(count), count // BATCH)


def train(settings: Settings, data: Digits, advance: Callable[[], object]) -> Run:
    """Train by fastmomentum, and repeat each update by the NumPy backend to compare times and bits.

    `advance` is called after every update, for the progress bar.
    """
    network = Network()
    x, y = data.train
    params, grad = network.start(), np.empty(network.size, np.float32)
    opt = fm.Optimizer(params, momentum=MOMENTUM, **settings)
    reference = params.copy()
    by_numpy = fm.Optimizer(reference, momentum=MOMENTUM, backend="numpy", **settings)
    fm.Optimizer(params.copy(), momentum=MOMENTUM, **settings).step(grad)  # compiles the kernels
    steps = list(batches(len(y)))
    losses: list[float] = []
    seconds, seconds_numpy, same = 0.0, 0.0, True
    for number, rows in enumerate(steps, 1):
        network.gradient(params, x[rows], y[rows], grad)
        begin = perf_counter()
        opt.step(grad)
        middle = perf_counter()
        by_numpy.step(grad)
        seconds, seconds_numpy = seconds + middle - begin, seconds_numpy + perf_counter() - middle
        same = same and [params.tobytes(), *_bytes(opt.state)] == [reference.tobytes(), *_bytes(by_numpy.state)]
        if number * 10 // len(steps) > len(losses):
            losses.append(network.loss(params, x, y))
        advance()
    accuracy = float((network.forward(params, data.test[0])[1].argmax(axis=1) == data.test[1]).mean())
    return Run(losses, accuracy, seconds, seconds_numpy, same)


def _bytes(state: Any) -> list[bytes]:
    """Return the bytes of all slots of an array's state."""
    slots = state if isinstance(state, tuple) else () if state is None else (state,)
    return [slot.tobytes() for slot in slots]


def table(runs: dict[str, Run]) -> Table:
    """Return a table with one column for each run."""
    title = "Handwritten digits, with the same start and the same batches for every rule"
    shown = Table("training loss after", *runs, title=title)
    for tenth in range(10):
        shown.add_row(f"{(tenth + 1) * 10} %", *(f"{run.losses[tenth]:.4f}" for run in runs.values()))
    shown.add_section()
    shown.add_row("test accuracy", *(f"{run.accuracy:.1%}" for run in runs.values()))
    shown.add_row("updates (s)", *(f"{run.seconds:.4f}" for run in runs.values()))
    shown.add_row("NumPy backend (s)", *(f"{run.seconds_numpy:.4f}" for run in runs.values()))
    shown.add_row("times faster", *(f"{run.seconds_numpy / run.seconds:.1f}" for run in runs.values()))
    shown.add_row("bits, compared to NumPy", *("the same" if run.same_bits else "DIFFERENT" for run in runs.values()))
    return shown


def picture(runs: dict[str, Run], path: Path) -> None:
    """Save the loss curves; those of pytorch, classical and ema coincide, as the three follow one trajectory."""
    percent = np.arange(10, 101, 10)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    curves = {name: run.losses for name, run in runs.items()}
    axis = losses(curves, figure.add_subplot(), times=dict.fromkeys(runs, percent))
    axis.set(xlabel="part of the run [%]", ylabel="training loss", title="Digits: training loss by rule")
    with system_errors(f"--picture {path}", UsageError):
        figure.savefig(path, dpi=120)


def run(path: Path, terminal: Terminal, names: list[str] | None = None) -> int:
    """Train by all rules, or by those with these names, print the results, and save the loss curves to `path`.

    Returns
    -------
    int
        0 if every form of momentum beats gradient descent and all bits are those of the NumPy backend, else 1. Rules
        that were asked for need not beat gradient descent.
    """
    chosen, data = chosen_runs(names), load()
    total = EPOCHS * (len(data.train[1]) // BATCH)
    terminal.show(
        f"{len(data.train[1])} images, {Network.size:,} parameters in one float32 array, {total} updates with each rule"
    )
    runs = {}
    with terminal.progress() as progress:
        for name, settings in chosen.items():
            task = progress.add_task(name, total=total)
            runs[name] = train(settings, data, partial(progress.advance, task))
    terminal.show(table(runs))
    picture(runs, path)
    terminal.say(f"The loss curves are in {path}.")
    last_loss = {name: run.losses[-1] for name, run in runs.items()}
    failed = [
        f"{name} does not beat gradient descent"
        for name, loss in last_loss.items()
        if name != WITHOUT_MOMENTUM and not names and not loss < last_loss[WITHOUT_MOMENTUM]
    ]
    failed += [
        f"the bits of {name} are not those of the NumPy backend" for name, run in runs.items() if not run.same_bits
    ]
    for reason in failed:
        terminal.say(f"FAILED: {reason}")
    results = {name: run._asdict() for name, run in runs.items()}
    terminal.record(
        {"parameters": Network.size, "updates": total, "runs": results, "failed": failed, "picture": str(path)}
    )
    return 1 if failed else 0
