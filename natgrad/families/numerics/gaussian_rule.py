"""Points whose moments to the fifth order are those of the standard normal law in d.

All points but the origin lie at the distance √(d + 2): the axes' points ±√(d + 2) e_i,
and points √((d + 2)/d) (±1, …, ±1) whose signs are independent four at a time. The
weights are 2/(d + 2) for the origin, (1/(d + 2))² for each of the former and
(d/(d + 2))², shared equally, for the latter: all positive.

The signs are (−1)^⟨c_i, b⟩ for b in {0, 1}^k, where any four of the codes c_i are
linearly independent: 2^k is of the order of d².

Source: Stroud, Approximate Calculation of Multiple Integrals (1971), E_n^{r²}, whose
2^n sign points are here replaced by an orthogonal array of strength 4 (Hedayat, Sloane
& Stufken, Orthogonal Arrays, 1999, chapter 4).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np


@functools.cache
def gaussian_rule(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [K, d] and positive weights [K] that sum to 1."""
    signs = _signs(d)
    axes = np.sqrt(d + 2) * np.concatenate([np.eye(d), -np.eye(d)])
    points = [np.zeros((1, d)), axes, np.sqrt((d + 2) / d) * signs]
    shares = [2 / (d + 2), 2 * d / (d + 2) ** 2, (d / (d + 2)) ** 2]
    weights = [
        np.full(len(block), share / len(block))
        for block, share in zip(points, shares, strict=True)
    ]
    return np.concatenate(points), np.concatenate(weights)


def _signs(d: int) -> np.ndarray:
    """Rows of ±1 whose columns are independent four at a time."""
    codes: list[int] = []
    candidate = 0
    for _ in range(d):
        # Neither 0 nor a sum of up to three earlier codes.
        taken = {0} | {
            functools.reduce(int.__xor__, chosen)
            for number in (1, 2, 3)
            for chosen in itertools.combinations(codes, number)
        }
        while candidate in taken:
            candidate += 1
        codes.append(candidate)
    bits = np.arange(2 ** max(codes).bit_length())
    parities = [np.bitwise_count(bits & code) % 2 for code in codes]
    return 1.0 - 2.0 * np.stack(parities, axis=1)
