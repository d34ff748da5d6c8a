"""Describe the problem that ``fastmomentum tune`` tunes for: the ends of a spectrum, or least squares on a file."""

import csv
import stat
import warnings
from contextlib import suppress
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import lsmr

from fastmomentum import theory
from fastmomentum.cli.errors import UsageError, system_errors

Floats = npt.NDArray[np.float64]
AnyArray = npt.NDArray[Any]

MAX_DENSE = 2000
"""The greatest number of parameters for which all eigenvalues are computed (measured: 15 s for 2000).

For more parameters, Lanczos estimates the ends of the spectrum.
"""


MOST_UNPACKED = 2**32
"""The most bytes that compressed arrays may take in memory: a small file can hold terabytes of zeros."""

GREATEST = 1e100
"""The limit of L and of 1/m; beyond it lr·h overflows in the theory."""


class Problem(NamedTuple):
    """Hold a quadratic problem: its spectrum, and the error of its start if it has one.

    Attributes
    ----------
    source : str
        "kappa", "ends", or the name of the file.
    spectrum : Spectrum
        The ends (m, L) of the spectrum, with their errors.
    curvatures, error : ndarray or None
        The eigenvalues of the Hessian, and x₀ − x* in the basis of its eigenvectors; None if they were not
        computed.
    rows, columns : int
        The shape of A; 0 without data.
    estimated : bool
        Whether Lanczos estimated the spectrum. The curvatures are then a few nodes that represent all eigenvalues; see
        :func:`quadrature_from_zero`.
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
        """The condition number L/m."""
        return self.spectrum.L / self.spectrum.m


def least_squares(path: Path, ridge: float) -> Problem:
    """Return the least-squares problem of a file, started at x = 0.

    ½‖Ax − b‖² + ½·ridge·‖x‖²

    Raises
    ------
    UsageError
        If the file has no valid A and b, or if m = 0, for which there is no rate.
    RuntimeError
        If Lanczos does not converge.
    """
    a, b = _read(path)
    rows, columns = a.shape
    with np.errstate(over="ignore"):
        size = np.linalg.norm(a)
    if not 1.0 / GREATEST <= size * size <= GREATEST:
        raise UsageError(
            f"{path}: expected an A whose norm squared is from {1.0 / GREATEST:g} to {GREATEST:g}, as the theory is "
            f"beyond double precision elsewhere; A has the norm {size:.3g}"
        )
    if rows < columns and not ridge:
        raise UsageError(f"{path}: expected full rank; A has {rows} rows for {columns} columns, so m = 0. {_REMEDY}")
    if columns > MAX_DENSE:
        spectrum = theory.spectrum(None, np.zeros(columns), hessp=lambda x, v: a.T @ (a @ v) + ridge * v)
        if not spectrum.m > spectrum.m_error:
            raise UsageError(
                f"{path}: expected full rank; m = {spectrum.m:.3g} ± {spectrum.m_error:.1g} may be 0. {_REMEDY}"
            )
        nodes, error = quadrature_from_zero(a, b, ridge) or (None, None)
        return Problem(str(path), spectrum, nodes, error, rows, columns, True)
    # The small singular values of A are more accurate than the square roots of the small eigenvalues of AᵀA.
    whole: Any = np.linalg.qr(np.column_stack([a, b]), mode="r")  # NumPy's types do not tell that "r" gives one array
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


_REMEDY = "With --ridge R, m is at least R."


def _read(path: Path) -> tuple[Floats, Floats]:
    """Return A and b of the file, checked and as float64."""
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: expected a name that ends in .npz or .csv")
    with system_errors(str(path), UsageError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe waits until another process writes
            raise UsageError(f"{path}: expected a regular file; got a pipe or a device")
        with warnings.catch_warnings():
            # NumPy warns of empty tables and of old headers. The former are refused below, the latter are read.
            warnings.simplefilter("ignore")
            a, b = readers[path.suffix.lower()](path)
    if a.ndim != 2 or b.shape not in ((len(a),), (len(a), 1)):
        raise UsageError(f"{path}: expected A of n rows and b of n numbers; got shapes {a.shape} and {b.shape}")
    if not a.size:
        raise UsageError(f"{path}: expected at least one row and one column in A; got shape {a.shape}")
    for name, array in (("A", a), ("b", b)):
        if array.dtype.kind not in "iuf":
            raise UsageError(f"{path}: expected real numbers in {name}; got {array.dtype}")
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            index = ", ".join(str(int(number)) for number in bad[0])
            raise UsageError(f"{path}: expected finite numbers; {name}[{index}] is {array[tuple(bad[0])]}")
    with np.errstate(over="ignore"):  # of a long double; least_squares() refuses infinite norms
        return a.astype(np.float64), b.astype(np.float64).reshape(-1)


def _read_npz(path: Path) -> tuple[AnyArray, AnyArray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise UsageError(f"{path}: expected an npz archive; got a single array")
            if not {"A", "b"} <= set(loaded.files):
                raise UsageError(f"{path}: expected arrays A and b; got {', '.join(loaded.files[:9]) or 'none'}")
            members = [info for info in ZipFile(file).infolist() if info.filename.removesuffix(".npy") in ("A", "b")]
            unpacked = sum([info.file_size for info in members if info.compress_type != ZIP_STORED])
            if unpacked > MOST_UNPACKED:
                raise UsageError(
                    f"{path}: expected compressed arrays of at most {MOST_UNPACKED} bytes; A and b unpack to {unpacked}"
                    ". Write larger ones with numpy.savez, which does not compress them"
                )
            a, b = loaded["A"], loaded["b"]
    except (UsageError, OSError):
        raise
    except Exception as error:  # of a damaged header, Python's own parser raises errors of many types
        size = f": {error}" if isinstance(error, MemoryError) and str(error) else ""
        raise UsageError(
            f"{path}: expected an npz archive of numeric arrays; the file cannot be read as such{size}"
        ) from error
    for name, member in (("A", a), ("b", b)):
        if not isinstance(member, np.ndarray):
            raise UsageError(f"{path}: expected an array as {name}; got a file of another kind")
    return a, b


def _read_csv(path: Path) -> tuple[AnyArray, AnyArray]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            skipped = int(_is_heading(next(csv.reader(file), [])))
        table = np.loadtxt(path, delimiter=",", skiprows=skipped, ndmin=2, encoding="utf-8-sig")
    except (ValueError, csv.Error) as error:
        fault = _find_fault(path) or str(error).splitlines()[0]
        raise UsageError(f"{path}: expected commas between numbers: {fault}") from error
    if not table.size:
        raise UsageError(f"{path}: expected lines of numbers; got none")
    if table.shape[1] < 2:
        raise UsageError(f"{path}: expected at least two columns, with b in the last; got shape {table.shape}")
    return table[:, :-1], table[:, -1]


def _find_fault(path: Path) -> str:
    """Describe the first fault of a table that NumPy cannot read, with its line number; return "" if none is found.

    Lines are numbered as in an editor. NumPy numbers them from 0 without the skipped lines, and its message names
    arguments of numpy.loadtxt, which the user of the command does not have.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file, suppress(csv.Error):
        reader, width = csv.reader(file), 0
        for cells in reader:
            if not cells or cells[0].startswith("#") or (reader.line_num == 1 and _is_heading(cells)):
                continue
            width = width or len(cells)
            for column, cell in enumerate(cells, 1):
                if not _is_number(cell):
                    return f"line {reader.line_num}, column {column} has {shortened(cell)}"
            if len(cells) != width:
                return f"line {reader.line_num} has {len(cells)} numbers; the lines before have {width}"
    return ""


def _is_heading(cells: list[str]) -> bool:
    """Return whether these cells of the first line are names, that is, whether none of them is a number."""
    return bool(cells) and not any(map(_is_number, cells))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


MAX_LSMR_STEPS = 2000
"""The number of iterations after which LSMR is stopped: with A of 4,000 × 2,000 they take a minute."""

MAX_LANCZOS_STEPS = 300
"""The greatest number of Lanczos vectors that are kept."""

LEAST_NODE_TOL = 1e-3
"""The relative distance to an eigenvalue up to which the least node that Lanczos finds is accepted."""


def quadrature_from_zero(a: Floats, b: Floats, ridge: float) -> tuple[Floats, Floats] | None:
    """Return a few curvatures, and the error in each, that represent the start x₀ = 0 of a large problem.

    ‖p(H)e_0‖² = Σ_k w_k·p(θ_k)², with H = AᵀA + ridge and e_0 = x₀ − x*

    The nodes θ and weights w are those of Gauss quadrature, which Lanczos computes if it starts at e_0. The formula is
    exact for polynomials p of a degree below the number of Lanczos steps. It is accurate for much higher degrees if p
    belongs to a method that converges, after the least node has come close to the least eigenvalue.

    Returns
    -------
    (ndarray, ndarray) or None
        θ and √w; None if LSMR does not find x*, or if Lanczos does not find the least eigenvalue.

    Notes
    -----
    Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapter 6.
    """
    solution, stopped, *_ = lsmr(a, b, damp=np.sqrt(ridge), atol=1e-13, btol=1e-13, conlim=0, maxiter=MAX_LSMR_STEPS)
    size = float(np.linalg.norm(solution))
    if stopped == 7 or not size:  # 7: LSMR reached maxiter
        return None
    basis = np.empty((min(MAX_LANCZOS_STEPS, len(solution)), len(solution)))
    diagonal, off_diagonal = np.zeros(len(basis)), np.zeros(len(basis))
    vector = -solution / size
    for k in range(len(basis)):
        basis[k] = vector
        product = a.T @ (a @ vector) + ridge * vector
        diagonal[k] = vector @ product
        for _ in range(2):  # one orthogonalisation leaves rounding errors of the large components that it removes
            product -= basis[: k + 1].T @ (basis[: k + 1] @ product)
        off_diagonal[k] = np.linalg.norm(product)
        if off_diagonal[k] <= 1e-13 * diagonal[: k + 1].max():  # the vectors span all eigenvectors that e_0 contains
            break
        vector = product / off_diagonal[k]
    nodes, vectors = eigh_tridiagonal(diagonal[: k + 1], off_diagonal[:k])
    if k + 1 < len(solution) and off_diagonal[k] * abs(vectors[-1, 0]) > LEAST_NODE_TOL * nodes[0]:
        return None
    return nodes, np.abs(vectors[0]) * size
