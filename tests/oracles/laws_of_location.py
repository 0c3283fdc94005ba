"""Laws with a location, known by their density and their divergence."""

from __future__ import annotations

import mpmath as mp
import numpy as np
from law_base import Law


def long(x):
    """A number of mpmath in NumPy's extended precision."""
    return np.longdouble(mp.nstr(x, 25))


def panels(reach, corner, width):
    """Gauss-Legendre points over [−reach, reach], graded towards a corner.

    They are given by their distances from it, which are accurate, or from 0 where it is
    outside of the range.
    """
    x, w = np.polynomial.legendre.leggauss(30)
    steps = width * np.longdouble(2) ** np.arange(-3, 1400)
    steps = steps[steps < 2 * reach]
    steps = np.concatenate([[width * 0.0], steps])
    corner = corner if abs(corner) < reach else corner * 0
    ends = np.linspace(-reach, np.longdouble(reach), 201) - corner
    ends = np.unique(np.concatenate([ends, -steps, steps]))
    ends = ends[np.abs(ends + corner) <= reach * (1 + np.longdouble(1e-15))]
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    away = (middle[:, None] + half[:, None] * x).ravel()
    return corner, away, (half[:, None] * w).ravel()


class Other(Law):
    """A location m and a log scale ρ, y = m + e^ρ ε."""

    def grid(self):
        far = 2 * self.reach
        rows = [(0, 0), (1, -3), (-30, 1.5), (1e4, 8), (1e4, -8), (0, far), (0, -far)]
        return [*rows, (1.0, far / 2), (1.0, -far / 4), (10.0**8, 20)]

    def labels(self, z):
        scale = mp.exp(z[1])
        return [[z[0] + k * scale] for k in (-2, 0.1, 50)]

    def log_density(self, z, y):
        return self.log_standard((y - z[0]) * mp.exp(-z[1])) - z[1]

    def fisher(self, z):
        of_location, of_scale = self.information()
        return [[of_location * mp.exp(-2 * z[1]), 0], [0, of_scale]]

    def divergence(self, a, b):
        """KL and its gradients, from ∂/∂δ and ∂/∂t with δ = (m − m')/s', t = ρ − ρ'."""
        delta, t = (a[0] - b[0]) * mp.exp(-b[1]), a[1] - b[1]
        value, d_delta, d_t = self.of_difference(delta, t)
        in_m = d_delta * mp.exp(-b[1])
        return value, [[in_m, d_t], [-in_m, -d_t - d_delta * delta]]


class NormalMeanLogScale(Other):
    def log_standard(self, e):
        return -(e**2) / 2 - mp.log(2 * mp.pi) / 2

    def information(self):
        return 1, 2

    def of_difference(self, delta, t):
        value = (mp.expm1(2 * t) - 2 * t + delta**2) / 2
        return value, delta, mp.expm1(2 * t)


class Laplace(Other):
    def log_standard(self, e):
        return -abs(e) - mp.log(2)

    def information(self):
        return 1, 1

    def of_difference(self, delta, t):
        x = abs(delta) * mp.exp(-t)
        value = mp.exp(t) * mp.exp(-x) + abs(delta) - 1 - t
        slope = mp.sign(delta) * (1 - mp.exp(-x))
        return value, slope, mp.exp(t - x) * (1 + x) - 1


class Cauchy(Other):
    def log_standard(self, e):
        return -mp.log(mp.pi) - mp.log1p(e**2)

    def information(self):
        return mp.mpf(1) / 2, mp.mpf(1) / 2

    def of_difference(self, delta, t):
        # log(((1 + e^t)² + δ²)/(4 e^t))
        square = (1 + mp.exp(t)) ** 2 + delta**2
        value = mp.log(square / 4) - t
        return value, 2 * delta / square, 2 * mp.exp(t) * (1 + mp.exp(t)) / square - 1


class Logistic(Other):
    def log_standard(self, e):
        return -2 * mp.log(2 * mp.cosh(e / 2))

    def information(self):
        return mp.mpf(1) / 3, (3 + mp.pi**2) / 9

    def of_difference(self, delta, t):
        delta, stretch, t = map(long, (delta, mp.exp(t), t))
        corner = -delta / stretch
        origin, away, weights = panels(95, corner, 1 / stretch)
        e = origin + away
        c = lambda x: np.abs(x) + 2 * np.log1p(np.exp(-np.abs(x)))
        moved = away * stretch + (delta if origin != corner else 0)
        mass = weights * np.exp(-c(e))
        slope = np.tanh(moved / 2)
        values = c(moved) - c(e) - t, slope, e * stretch * slope - 1
        return [np.sum(mass * value) for value in values]


class StudentT(Other):
    nu = mp.mpf(2.5)

    def log_standard(self, e):
        nu = self.nu
        constant = mp.loggamma((nu + 1) / 2) - mp.loggamma(nu / 2)
        constant -= mp.log(nu * mp.pi) / 2
        return constant - (nu + 1) / 2 * mp.log1p(e**2 / nu)

    def information(self):
        return (self.nu + 1) / (self.nu + 3), 2 * self.nu / (self.nu + 3)

    def of_difference(self, delta, t):
        """With ε = √ν sinh u, whose density is in proportion to cosh^−ν u."""
        nu = self.nu
        constant = mp.exp(mp.loggamma((nu + 1) / 2) - mp.loggamma(nu / 2))
        constant, root = long(constant / mp.sqrt(mp.pi)), long(mp.sqrt(nu))
        delta, stretch, t, nu = map(long, (delta, mp.exp(t), t, nu))
        corner = np.arcsinh(-delta / stretch / root)
        width = 1 / stretch / np.cosh(corner)
        origin, away, weights = panels(100 / nu + 15 / root, corner, width)
        u = origin + away
        mass, e = weights * constant * np.cosh(u) ** -nu, root * np.sinh(u)
        moved = 2 * root * stretch * np.cosh(origin + away / 2) * np.sinh(away / 2)
        moved = moved if origin == corner else e * stretch + delta
        share = (nu + 1) * moved / (nu + moved**2)
        gap = (nu + 1) / 2 * (np.log1p(moved**2 / nu) - np.log1p(e**2 / nu))
        values = gap - t, share, share * e * stretch - 1
        return [np.sum(mass * value) for value in values]


def student(degrees):
    return type("StudentT", (StudentT,), {"nu": mp.mpf(degrees)})


class NormalMean(Other):
    scale = mp.mpf(0.5)

    def grid(self):
        return [[s * x] for x in self.decades[2:] for s in (1, -1)]

    def labels(self, z):
        return [[z[0] + k * self.scale] for k in (-2, 0.1, 50)]

    def log_density(self, z, y):
        constant = mp.log(self.scale) + mp.log(2 * mp.pi) / 2
        return -(((y - z[0]) / self.scale) ** 2) / 2 - constant

    def fisher(self, z):
        return [[1 / self.scale**2]]

    def divergence(self, a, b):
        move = (b[0] - a[0]) / self.scale**2
        return move * (b[0] - a[0]) / 2, [[-move], [move]]
