"""The main job on real data: a small network on handwritten digits, trained by one rule after the other.

Run as ``fastmomentum demo``; needs the extra ``cli``.
"""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.datasets import load_digits

import fastmomentum as fm
from fastmomentum.cli.terminal import Terminal
from fastmomentum.plots.curves import losses

Floats = npt.NDArray[np.float32]

HIDDEN, EPOCHS, BATCH, MOMENTUM, LR = 256, 40, 64, 0.9, 0.02
RUNS: dict[str, dict[str, Any]] = {
    "gradient descent": {"rule": "sgd", "lr": LR},
    "pytorch": {"rule": "pytorch", "lr": LR},
    "classical": {"rule": "classical", "lr": LR},
    "ema": {"rule": "ema", "lr": LR / (1 - MOMENTUM)},
    "Nesterov": {"rule": "pytorch", "nesterov": True, "lr": LR},
}
PLAIN = "gradient descent"


class Digits(NamedTuple):
    """scikit-learn's packaged 8 × 8 digits, scaled to [0, 1]; every fifth image is kept for the test."""

    train: tuple[Floats, npt.NDArray[np.int64]]
    test: tuple[Floats, npt.NDArray[np.int64]]


class Run(NamedTuple):
    """What one rule did: training loss after each tenth, test accuracy, and the time that its updates took."""

    losses: list[float]
    accuracy: float
    seconds: float
    seconds_numpy: float
    same_bits: bool


def load() -> Digits:
    """The data."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    kept = np.arange(len(labels)) % 5 == 0
    return Digits((images[~kept], labels[~kept]), (images[kept], labels[kept]))


class Network:
    """64 inputs, one hidden layer of tanh, 10 classes by softmax; all parameters in one flat array."""

    shapes = ((64, HIDDEN), (HIDDEN,), (HIDDEN, 10), (10,))
    size = sum(int(np.prod(shape)) for shape in shapes)

    def start(self) -> Floats:
        """The parameters that every run starts from."""
        flat = np.zeros(self.size, np.float32)
        rng = np.random.default_rng(0)
        for weights in self.views(flat)[::2]:
            weights[...] = rng.standard_normal(weights.shape) / np.sqrt(len(weights))
        return flat

    def views(self, flat: Floats) -> list[Floats]:
        """The layers' weights and biases, as views of the flat array."""
        ends = np.cumsum([np.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes)]

    def forward(self, flat: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Hidden activations, and log-probabilities of the classes."""
        w1, b1, w2, b2 = self.views(flat)
        hidden = np.tanh(x @ w1 + b1)
        scores = hidden @ w2 + b2
        scores -= scores.max(axis=1, keepdims=True)
        return hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def loss(self, flat: Floats, x: Floats, y: npt.NDArray[np.int64]) -> float:
        """Mean cross-entropy."""
        return float(-self.forward(flat, x)[1][np.arange(len(y)), y].mean())

    def gradient(self, flat: Floats, x: Floats, y: npt.NDArray[np.int64], out: Floats) -> None:
        """The gradient of the loss, into the flat array `out`."""
        hidden, logs = self.forward(flat, x)
        error = np.exp(logs)
        error[np.arange(len(y)), y] -= 1
        error /= len(y)
        g1, c1, g2, c2 = self.views(out)
        np.matmul(hidden.T, error, out=g2)
        error.sum(axis=0, out=c2)
        back = error @ self.views(flat)[2].T * (1 - hidden * hidden)
        np.matmul(x.T, back, out=g1)
        back.sum(axis=0, out=c1)


def batches(count: int) -> Iterator[npt.NDArray[np.int64]]:
    """The same shuffled batches for every run."""
    rng = np.random.default_rng(1)
    for _ in range(EPOCHS):
        yield from np.array_split(rng.permutation(count), count // BATCH)


def train(settings: dict[str, Any], data: Digits, advance: Any) -> Run:
    """Train by fastmomentum; beside it the same updates by the NumPy backend, timed and compared bit by bit."""
    network = Network()
    x, y = data.train
    params, grad = network.start(), np.empty(network.size, np.float32)
    opt = fm.Momentum(params, momentum=MOMENTUM, **settings)
    reference = params.copy()
    state = None if opt.state is None else opt.state.copy()
    opt.step(np.zeros_like(grad))  # compiles; a zero gradient at rest changes nothing
    steps = list(batches(len(y)))
    losses: list[float] = []
    seconds, seconds_numpy, same = 0.0, 0.0, True
    for number, rows in enumerate(steps, 1):
        network.gradient(params, x[rows], y[rows], grad)
        begin = perf_counter()
        opt.step(grad)
        middle = perf_counter()
        fm.step(reference, state, grad, momentum=MOMENTUM, backend="numpy", **settings)
        seconds, seconds_numpy = seconds + middle - begin, seconds_numpy + perf_counter() - middle
        same = same and params.tobytes() == reference.tobytes()
        same = same and (state is None or opt.state.tobytes() == state.tobytes())
        if number * 10 // len(steps) > len(losses):
            losses.append(network.loss(params, x, y))
        advance()
    accuracy = float((network.forward(params, data.test[0])[1].argmax(axis=1) == data.test[1]).mean())
    return Run(losses, accuracy, seconds, seconds_numpy, same)


def table(runs: dict[str, Run]) -> Table:
    """The runs side by side."""
    shown = Table("training loss after", *runs, title="Handwritten digits, the same start and batches for every rule")
    for tenth in range(10):
        shown.add_row(f"{(tenth + 1) * 10} %", *(f"{run.losses[tenth]:.4f}" for run in runs.values()))
    shown.add_section()
    shown.add_row("test accuracy", *(f"{run.accuracy:.1%}" for run in runs.values()))
    shown.add_row("updates (s)", *(f"{run.seconds:.4f}" for run in runs.values()))
    shown.add_row("by the NumPy backend (s)", *(f"{run.seconds_numpy:.4f}" for run in runs.values()))
    shown.add_row("ratio", *(f"{run.seconds_numpy / run.seconds:.1f}" for run in runs.values()))
    shown.add_row("bits", *("the same" if run.same_bits else "DIFFERENT" for run in runs.values()))
    return shown


def picture(runs: dict[str, Run], path: Path) -> None:
    """The loss curves; those of the three conventions of one trajectory lie on each other."""
    parts = np.arange(10, 101, 10)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    curves = {name: run.losses for name, run in runs.items()}
    axis = losses(curves, figure.add_subplot(), times=dict.fromkeys(runs, parts))
    axis.set(xlabel="part of the run [%]", ylabel="training loss", title="Digits: gradient descent and momentum")
    figure.savefig(path, dpi=120)


def run(path: Path, terminal: Terminal) -> int:
    """Run the demo, the curves to `path`; 0 if momentum beats gradient descent and all bits are those of NumPy."""
    data = load()
    total = EPOCHS * (len(data.train[1]) // BATCH)
    terminal.show(
        f"{len(data.train[1])} images, {Network.size:,} parameters in one float32 array, {total} updates a rule"
    )
    runs = {}
    with terminal.progress() as progress:
        for name, settings in RUNS.items():
            task = progress.add_task(name, total=total)
            runs[name] = train(settings, data, lambda task=task: progress.advance(task))
    terminal.show(table(runs))
    picture(runs, path)
    terminal.say(f"The loss curves are in {path}.")
    slow = [name for name, run in runs.items() if name != PLAIN and not run.losses[-1] < runs[PLAIN].losses[-1]]
    different = [name for name, run in runs.items() if not run.same_bits]
    failed = [f"{name} does not beat gradient descent" for name in slow]
    failed += [f"the bits of {name} are not those of the NumPy backend" for name in different]
    for why in failed:
        terminal.say(f"FAILED: {why}")
    told = {name: run._asdict() for name, run in runs.items()}
    terminal.record(
        {"parameters": Network.size, "updates": total, "runs": told, "failed": failed, "picture": str(path)}
    )
    return 1 if failed else 0
