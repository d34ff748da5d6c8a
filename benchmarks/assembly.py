"""Instructions per vector in a kernel's loop: what no neighbour on the machine can disturb.

``python -m benchmarks.assembly`` prints them for every rule.
"""

import re
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from fastmomentum.backends.cpu import kernels


class Loop(NamedTuple):
    """The widest loop of a kernel: how often it is unrolled, and for each vector of elements its instructions."""

    unrolled: int
    loads: float
    stores: float
    arithmetic: float


def hottest(assembly: str) -> Loop:
    """The loop with the most packed arithmetic: a block that jumps back to its own label.

    Loads are counted wherever a packed instruction reads memory, be it a move or an operand.
    """
    best: list[str] = []
    for label, body in re.findall(r"^(\.LBB\w+):\n((?:(?!^\.LBB).*\n)*)", assembly, re.MULTILINE):
        lines = [line.strip() for line in body.splitlines()]
        if any(re.match(rf"j\w+\s+{re.escape(label)}$", line) for line in lines) and _packed(lines) > _packed(best):
            best = lines
    moves = [line for line in best if re.match(r"v?mov[ua]p[sd]\s", line)]
    stores = [line for line in moves if re.search(r"%[xyz]mm\d+,\s*-?\w*\(", line)]
    reads = [line for line in best if re.match(r"v?\w+p[sd]\s", line) and "(" in line and line not in stores]
    vectors = max(1, len(stores))
    return Loop(len(stores), len(reads) / vectors, len(stores) / vectors, _packed(best) / vectors)


def _packed(lines: list[str]) -> int:
    return sum(bool(re.match(r"v?(add|sub|mul|div)p[sd]\s", line)) for line in lines)


def of(rule: str) -> Loop:
    """The loop of this rule's kernel for one array of float32."""
    kernel: Any = kernels.kernel(fm.rules.find(rule), np.dtype(np.float32))
    (assembly,) = kernel.inspect_asm().values()
    return hottest(assembly)


if __name__ == "__main__":
    for rule in fm.rules.names():
        found = of(rule)
        written = 1 + len(fm.rules.find(rule).state)
        print(
            f"{rule:20} {found.unrolled // written} vectors a turn, for each {found.loads * written:g} loads, "
            f"{written} stores, {found.arithmetic * written:g} additions and multiplications"
        )
