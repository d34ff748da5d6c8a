"""Count the instructions in the compiled loop of a kernel; other processes on the machine cannot change the counts.

``python -m benchmarks.assembly`` prints the counts for every rule.
"""

import re
from typing import Any, NamedTuple

import numpy as np

import fastmomentum as fm
from fastmomentum.backends.cpu import kernels


class Loop(NamedTuple):
    """Hold the number of vectors that one turn of a loop stores, and its instructions per stored vector.

    Attributes
    ----------
    unrolled : int
        The vectors that one turn stores. A kernel that writes two arrays stores two for each vector of elements.
    loads : float
        The packed instructions that read memory, be they moves or arithmetic with an operand in memory.
    stores : float
        The stores: 1, or 0 if the loop stores nothing.
    arithmetic : float
        The packed additions, subtractions, multiplications and divisions.
    """

    unrolled: int
    loads: float
    stores: float
    arithmetic: float


def hot_loop(assembly: str) -> Loop:
    """Return the counts of the loop with the most packed arithmetic in x86 assembly of AT&T syntax.

    A loop is a block that ends with a jump to its own label.
    """
    best: list[str] = []
    for label, body in re.findall(r"^(\.LBB\w+):\n((?:(?!^\.LBB).*\n)*)", assembly, re.MULTILINE):
        lines = [line.strip() for line in body.splitlines()]
        jumps_back = any(re.match(rf"j\w+\s+{re.escape(label)}$", line) for line in lines)
        if jumps_back and _packed_arithmetic(lines) > _packed_arithmetic(best):
            best = lines
    moves = [line for line in best if re.match(r"v?mov[ua]p[sd]\s", line)]
    stores = [line for line in moves if re.search(r"%[xyz]mm\d+,\s*-?\w*\(", line)]
    loads = [line for line in best if re.match(r"v?\w+p[sd]\s", line) and "(" in line and line not in stores]
    vectors = max(1, len(stores))
    return Loop(len(stores), len(loads) / vectors, len(stores) / vectors, _packed_arithmetic(best) / vectors)


def _packed_arithmetic(lines: list[str]) -> int:
    return sum(bool(re.match(r"v?(add|sub|mul|div)p[sd]\s", line)) for line in lines)


def kernel_loop(rule: str) -> Loop:
    """Return the counts of the loop of a rule's kernel for one array of float32."""
    fm.set_cache(None)  # Numba has the assembly of what it has compiled itself
    fm.clear_cache()
    kernel: Any = kernels.kernel(fm.rules.find(rule), np.dtype(np.float32))  # Numba ships no type with inspect_asm
    (assembly,) = kernel.inspect_asm().values()
    return hot_loop(assembly)


if __name__ == "__main__":
    for rule in fm.rules.names():
        found = kernel_loop(rule)
        written = 1 + len(fm.rules.find(rule).state)
        print(
            f"{rule:20} {found.unrolled // written} vectors of elements in a turn; for each {found.loads * written:g} "
            f"loads, {written} stores, {found.arithmetic * written:g} arithmetic instructions"
        )
