"""Laws of positive numbers and of proportions."""

from __future__ import annotations

import mpmath as mp
from law_base import Exponential, Scalar


class Rate(Scalar):
    """The exponential law."""

    def valid(self, z):
        return z[0] < 0

    def grid(self):
        return [[-x] for x in self.decades]

    def normalizer(self, z):
        return -mp.log(-z[0])

    def mean(self, z):
        return [-1 / z[0]]

    def fisher(self, z):
        return [[1 / z[0] ** 2]]

    def labels(self, z):
        return [[-f / z[0]] for f in (0.001, 1.1, 30)]


class Weibull(Rate):
    k = mp.mpf(1.5)

    def statistics(self, y):
        return [y[0] ** self.k]

    def base(self, y):
        return mp.log(self.k) + (self.k - 1) * mp.log(y[0])

    def expected_base(self, z):
        mean_log = -(mp.euler + mp.log(-z[0])) / self.k
        return mp.log(self.k) + (self.k - 1) * mean_log

    def labels(self, z):
        return [[(-f / z[0]) ** (1 / self.k)] for f in (0.001, 1.1, 30)]


class Gamma(Exponential):
    def valid(self, z):
        return z[0] > -1 and z[1] < 0

    def grid(self):
        far = 10.0**self.reach
        shapes = [(1e-6, 1), (1e-3, 1e-8), (0.3, 1e8), (1, 1), (8, 1 / far), (8, far)]
        large = [(80, 3), (1e4, 1e4), (1e7, 1), (1e10, 1e10), (far, far / 2), (far, 1)]
        return [[a - 1, -b] for a, b in shapes + large]

    def shape_and_rate(self, z):
        return z[0] + 1, -z[1]

    def normalizer(self, z):
        a, b = self.shape_and_rate(z)
        return mp.loggamma(a) - a * mp.log(b)

    def mean(self, z):
        a, b = self.shape_and_rate(z)
        return [mp.digamma(a) - mp.log(b), a / b]

    def fisher(self, z):
        a, b = self.shape_and_rate(z)
        return [[mp.psi(1, a), 1 / b], [1 / b, a / b**2]]

    def statistics(self, y):
        return [mp.log(y[0]), y[0]]

    def labels(self, z):
        a, b = self.shape_and_rate(z)
        spread = 1 / mp.sqrt(1 + a)
        return [[(a / b) * mp.exp(k * spread)] for k in (-3, 0.1, 2)]


class InverseGamma(Gamma):
    def valid(self, z):
        return z[0] < -1 and z[1] < 0

    def grid(self):
        return [[-x - 2, y] for x, y in super().grid()]

    def shape_and_rate(self, z):
        return -z[0] - 1, -z[1]

    def mean(self, z):
        a, b = self.shape_and_rate(z)
        return [mp.log(b) - mp.digamma(a), a / b]

    def fisher(self, z):
        a, b = self.shape_and_rate(z)
        return [[mp.psi(1, a), -1 / b], [-1 / b, a / b**2]]

    def statistics(self, y):
        return [mp.log(y[0]), 1 / y[0]]

    def labels(self, z):
        return [[1 / y] for (y,) in super().labels(z)]


class Dirichlet(Exponential):
    def valid(self, z):
        return min(z) > -1

    def grid(self):
        far, small = 10.0**self.reach, [[1e-6, 1e-3, 0.3], [1, 1, 1], [2, 3e-4, 50]]
        large = [[80, 3, 1e4], [1e7, 2e6, 3e6], [1e10, 1, 0.1], [1e5, 1e-5, 1e5]]
        huge = [[far, far / 3, far / 2], [far, 1, 3], [0.5, 0.2, far]]
        return [[a - 1 for a in row] for row in small + large + huge]

    def normalizer(self, z):
        a = [e + 1 for e in z]
        return sum(map(mp.loggamma, a)) - mp.loggamma(sum(a))

    def mean(self, z):
        a = [e + 1 for e in z]
        return [mp.digamma(e) - mp.digamma(sum(a)) for e in a]

    def fisher(self, z):
        a = [e + 1 for e in z]
        common = mp.psi(1, sum(a))
        return [
            [(mp.psi(1, a[i]) if i == j else 0) - common for j in range(len(a))]
            for i in range(len(a))
        ]

    def statistics(self, y):
        # A label sums to 1 up to its rounding.
        return [mp.log(e / sum(y)) for e in y]

    def labels(self, z):
        a = [max(e + 1, mp.mpf("0.1")) for e in z]
        away = [mp.exp(k / mp.sqrt(2 + e)) for k, e in zip((1, -1, 1), a, strict=False)]
        draws = [a, [e * f for e, f in zip(a, away, strict=True)]]
        return [[e / sum(draw) for e in draw] for draw in draws]


class Beta(Dirichlet):
    def grid(self):
        far, small = 10.0**self.reach, [[1e-6, 1e-3], [1, 1], [3e-4, 50], [2, 0.3]]
        large = [[80, 3], [1e7, 2e6], [1e10, 0.1], [1e5, 1e-5]]
        return [[a - 1 for a in r] for r in [*small, *large, [far, far / 3], [2, far]]]

    def statistics(self, y):
        if y[0] < 0:
            return [mp.log1p(y[0]), mp.log(-y[0])]
        return [mp.log(y[0]), mp.log1p(-y[0])]

    def labels(self, z):
        return [[p if p < q else -q] for p, q in super().labels(z)]
