"""What is to be tuned for: the ends of a spectrum, or a least-squares problem read from a file.

What a start at x = 0 has of each curvature, where the eigenvectors of the Hessian are too many to be taken.
"""

import csv
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import lsmr

from fastmomentum import theory
from fastmomentum.cli.terminal import UsageError

Floats = npt.NDArray[np.float64]

DENSE = 2000
"""Up to so many parameters all eigenvalues are taken (measured: 15 s for 2000); beyond, Lanczos finds the ends."""


class Problem(NamedTuple):
    """A quadratic, as far as it is known.

    Attributes
    ----------
    source : str
        "kappa", "ends", or the file's name.
    spectrum : Spectrum
        The ends (m, L), with their errors.
    curvatures, error : ndarray or None
        All eigenvalues of the Hessian and x₀ − x* in their basis, where known.
    rows, columns : int
        Of A; 0 without data.
    estimated : bool
        Whether all this is what Lanczos finds; the curvatures are then few that stand for all.
    """

    source: str
    spectrum: theory.Spectrum
    curvatures: Floats | None = None
    error: Floats | None = None
    rows: int = 0
    columns: int = 0
    estimated: bool = False

    @property
    def kappa(self) -> float:
        """L/m."""
        return self.spectrum.L / self.spectrum.m


def least_squares(path: Path, ridge: float) -> Problem:
    """½‖Ax − b‖² + ½·ridge·‖x‖², with A and b from a file, started at x = 0.

    Raises
    ------
    UsageError
        If the file holds no such problem, or one with m = 0, for which there is no rate.
    RuntimeError
        If Lanczos does not converge.
    """
    a, b = _read(path)
    rows, columns = a.shape
    with np.errstate(over="ignore"):
        size = np.linalg.norm(a)
    if not 0.0 < size * size < np.inf:
        raise UsageError(f"{path}: expected A'A neither 0 nor beyond double precision; A has the norm {size:.3g}")
    if rows < columns and not ridge:
        raise UsageError(f"{path}: expected full rank; A has {rows} rows for {columns} columns, so m = 0. {_REMEDY}")
    if columns > DENSE:
        spectrum = theory.spectrum(None, np.zeros(columns), hessp=lambda x, v: a.T @ (a @ v) + ridge * v)
        if not spectrum.m > spectrum.m_error:
            raise UsageError(
                f"{path}: expected full rank; m = {spectrum.m:.3g} ± {spectrum.m_error:.1g} may be 0. {_REMEDY}"
            )
        nodes, parts = seen_from_zero(a, b, ridge) or (None, None)
        return Problem(str(path), spectrum, nodes, parts, rows, columns, True)
    # Singular values of A, not eigenvalues of A'A: its least ones keep their digits.
    whole: Any = np.linalg.qr(np.column_stack([a, b]), mode="r")  # NumPy's annotations think of all modes at once
    triangle = whole[: min(rows, columns)]
    left, found, _ = np.linalg.svd(triangle[:, :-1])
    if not ridge and found[-1] <= np.finfo(np.float64).eps * max(rows, columns) * found[0]:
        raise UsageError(
            f"{path}: expected full rank; the least singular value of A is {found[-1] / found[0]:.1g} of the greatest, "
            f"which is rounding, so m = 0. {_REMEDY}"
        )
    singular, pull = np.zeros(columns), np.zeros(columns)
    singular[: found.size], pull[: found.size] = found, left.T @ triangle[:, -1]
    curvatures = singular * singular + ridge
    spectrum = theory.Spectrum(float(curvatures.min()), float(curvatures.max()))
    return Problem(str(path), spectrum, curvatures, -singular * pull / curvatures, rows, columns)


_REMEDY = "--ridge R makes it R"


def _read(path: Path) -> tuple[Floats, Floats]:
    """A and b, checked."""
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: expected a name that ends in .npz or .csv")
    try:
        a, b = readers[path.suffix.lower()](path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'is damaged'}") from error
    if a.ndim != 2 or b.shape not in ((len(a),), (len(a), 1)):
        raise UsageError(f"{path}: expected A of n rows and b of n numbers; got shapes {a.shape} and {b.shape}")
    if not a.size:
        raise UsageError(f"{path}: expected one row and one column of A at least; got shape {a.shape}")
    for name, array in (("A", a), ("b", b)):
        if array.dtype.kind not in "iuf":
            raise UsageError(f"{path}: expected real numbers in {name}; got {array.dtype}")
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            where = ", ".join(str(int(index)) for index in bad[0])
            raise UsageError(f"{path}: expected finite numbers; {name}[{where}] is {array[tuple(bad[0])]}")
    return a.astype(np.float64), b.astype(np.float64).reshape(-1)


def _read_npz(path: Path) -> tuple[Any, Any]:
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if not isinstance(held, np.lib.npyio.NpzFile):
                raise UsageError(f"{path}: expected an npz archive; got a single array")
            if not {"A", "b"} <= set(held.files):
                raise UsageError(f"{path}: expected arrays A and b; got {', '.join(held.files) or 'none'}")
            return held["A"], held["b"]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: expected a whole npz archive of numbers; it cannot be read as one") from error


def _read_csv(path: Path) -> tuple[Any, Any]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            skipped = int(_is_heading(next(csv.reader(file), [])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, which is refused below
            table = np.loadtxt(path, delimiter=",", skiprows=skipped, ndmin=2, encoding="utf-8-sig")
    except (ValueError, csv.Error) as error:
        why = _first_fault(path) or str(error).splitlines()[0]
        raise UsageError(f"{path}: expected commas between numbers: {why}") from error
    if not table.size:
        raise UsageError(f"{path}: expected lines of numbers; got none")
    if table.shape[1] < 2:
        raise UsageError(f"{path}: expected two columns at least, b the last; got shape {table.shape}")
    return table[:, :-1], table[:, -1]


def _first_fault(path: Path) -> str:
    """Where a file that NumPy refuses is first no table, with lines counted as editors do; empty where it is not seen.

    NumPy counts lines without those that it skips, from 0, and its message names options that nobody has here.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file, suppress(csv.Error):
        reader, width = csv.reader(file), 0
        for cells in reader:
            if not cells or cells[0].startswith("#") or (reader.line_num == 1 and _is_heading(cells)):
                continue
            width = width or len(cells)
            for column, cell in enumerate(cells, 1):
                if not _is_number(cell):
                    return f"line {reader.line_num}, column {column} has {cell!r}"
            if len(cells) != width:
                return f"line {reader.line_num} has {len(cells)} numbers, those before it {width}"
    return ""


def _is_heading(cells: list[str]) -> bool:
    """Whether the first line holds names: no cell of it is a number."""
    return bool(cells) and not any(map(_is_number, cells))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


PRODUCTS = 2000
"""Iterations after which LSMR is given up: with A of 4,000 × 2,000 they take a minute."""

VECTORS = 300
"""Vectors that Lanczos keeps."""

SETTLED = 1e-3
"""How near, relatively, the least curvature that Lanczos finds must be to an eigenvalue."""


def seen_from_zero(a: Floats, b: Floats, ridge: float) -> tuple[Floats, Floats] | None:
    """Few curvatures, and an error in each, that stand for x₀ − x* in the eigenbasis of AᵀA + ridge.

    ‖p(H)e_0‖² = Σ_k w_k·p(θ_k)² with the nodes and weights of Gauss's quadrature, which Lanczos finds when it starts at
    e_0: exact for polynomials p up to its number of steps, and settled far beyond for those of a method that
    converges, once the end of the spectrum has been found.

    Returns
    -------
    (ndarray, ndarray) or None
        θ and √w; None where LSMR does not find x*, or Lanczos the end of the spectrum.

    Notes
    -----
    Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 6.
    """
    solution, stopped, *_ = lsmr(a, b, damp=np.sqrt(ridge), atol=1e-13, btol=1e-13, conlim=0, maxiter=PRODUCTS)
    size = float(np.linalg.norm(solution))
    if stopped == 7 or not size:  # 7: not yet converged
        return None
    basis = np.empty((min(VECTORS, len(solution)), len(solution)))
    diagonal, beside = np.zeros(len(basis)), np.zeros(len(basis))
    vector = -solution / size
    for k in range(len(basis)):
        basis[k] = vector
        product = a.T @ (a @ vector) + ridge * vector
        diagonal[k] = vector @ product
        for _ in range(2):  # once leaves the rounding of large parts that are taken away
            product -= basis[: k + 1].T @ (basis[: k + 1] @ product)
        beside[k] = np.linalg.norm(product)
        if beside[k] <= 1e-13 * diagonal[: k + 1].max():  # e_0 has no part in what is left
            break
        vector = product / beside[k]
    nodes, vectors = eigh_tridiagonal(diagonal[: k + 1], beside[:k])
    if k + 1 < len(solution) and beside[k] * abs(vectors[-1, 0]) > SETTLED * nodes[0]:
        return None
    return nodes, np.abs(vectors[0]) * size
