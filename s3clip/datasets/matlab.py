"""Tables of whole numbers in MATLAB files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3clip_runtime.errors import DataError


def read_table(path: Path, key: str) -> NDArray[np.int64]:
    """The matrix `key` of a .mat file, int64 (rows, columns).

    MATLAB stores whole numbers as doubles or in the narrowest integer type, unsigned ones too; in int64
    they can be subtracted from.

    Raises:
        DataError: the file is missing or damaged, or `key` is no matrix of whole numbers.
    """
    from scipy.io import loadmat  # here, so that the other readers start without scipy

    if not path.is_file():
        raise DataError(f"{path}: this file belongs to the layout and does not exist; restore it")
    try:
        tables = loadmat(path)
    except Exception as error:  # a damaged file makes loadmat raise nearly anything
        raise DataError(f"{path}: an index must be a readable .mat file ({error}); restore it") from error
    if key not in tables:
        found = ", ".join(sorted(name for name in tables if not name.startswith("__")))
        raise DataError(f"{path}: the matrix is called {key}, found {found or 'nothing'}; restore the file")
    table = np.asarray(tables[key])
    if table.ndim != 2 or table.dtype.kind not in "iuf" or not _is_whole(table):
        raise DataError(
            f"{path}: {key} must be a matrix of whole numbers, found {table.dtype} of shape {table.shape}; "
            "restore the file"
        )
    return table.astype(np.int64)


def _is_whole(table: NDArray[Any]) -> bool:
    return bool(np.isfinite(table).all() and np.array_equal(table, np.trunc(table)))
