"""Matrix products that stay on the calling thread.

numpy's OpenBLAS wakes threads for products of more than 2^18 multiplications, and these wait for one another by
spinning. Beside an engine that keeps every core busy that costs milliseconds for a product of 40 microseconds
(measured: 2.1 ms against 0.04). Pieces below that size are computed at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

ALONE = 1 << 18
"""OpenBLAS, interface/gemm.c: SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD."""
COLUMNS = 16


def product(left: Floats, right: Floats) -> Floats:
    """`left @ right`, by rows of `left`."""
    rows = max(1, ALONE // max(1, right.size))
    if rows >= len(left):
        whole: Floats = left @ right
        return whole
    return np.concatenate([left[start : start + rows] @ right for start in range(0, len(left), rows)])


class Wide:
    """A matrix to multiply by again and again, cut into strips of a few columns."""

    def __init__(self, matrix: Floats) -> None:
        width = matrix.shape[1]
        self._strips = [np.ascontiguousarray(matrix[:, at : at + COLUMNS]) for at in range(0, width, COLUMNS)]

    def after(self, left: Floats) -> Floats:
        """`left @ matrix`."""
        return np.concatenate([product(left, strip) for strip in self._strips], axis=1)
