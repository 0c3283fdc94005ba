"""What the laws of this folder share: textbook formulas in mpmath, on a grid.

A class takes the precision whose range its points cover. An exponential family gives A,
∇A, ∇²A and what makes the entropy; another family its density and its divergence.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np

REACH = {"float32": 30, "float64": 200}


class Law:
    def __init__(self, kind):
        self.kind, self.reach = kind, REACH[kind]
        self.decades = [10.0**k for k in (-self.reach, -8, -3, 0, 3, 8, self.reach)]
        self.points = self.grid()

    def valid(self, z):
        return True

    def round(self, y):
        return np.array([float(entry) for entry in y], self.kind)


class Exponential(Law):
    def base(self, y):
        return mp.mpf(0)

    def expected_base(self, z):
        return mp.mpf(0)

    def base_slope(self, z):
        """The gradient of E[h], by differences."""
        steps = [mp.mpf(10) ** -30 * (abs(e) if e else 1) for e in z]
        moved = lambda i, s: [e + s * (j == i) for j, e in enumerate(z)]
        rise = lambda i, s: (
            self.expected_base(moved(i, s)) - self.expected_base(moved(i, -s))
        )
        return [rise(i, s) / (2 * s) for i, s in enumerate(steps)]


class Scalar(Exponential):
    def statistics(self, y):
        return y


def softplus(x):
    return mp.log1p(mp.exp(x)) if x < 0 else x + mp.log1p(mp.exp(-x))
