"""Laws of labels and of counts."""

from __future__ import annotations

import mpmath as mp
from law_base import Exponential, Scalar, softplus


class Bernoulli(Scalar):
    trials = 1

    def grid(self):
        sizes = [10.0**-self.reach, 1e-3, 1.0, 12.0, 80.0, 6e2, 10.0**self.reach]
        return [[0.0]] + [[s * x] for x in sizes for s in (1, -1)]

    def normalizer(self, z):
        return self.trials * softplus(z[0])

    def mean(self, z):
        return [self.trials * mp.exp(-softplus(-z[0]))]

    def fisher(self, z):
        return [[self.trials * mp.exp(-softplus(-z[0]) - softplus(z[0]))]]

    def labels(self, z):
        return [[0], [1]]


class Binomial(Bernoulli):
    trials = 7

    def base(self, y):
        return mp.log(mp.binomial(self.trials, y[0]))

    def labels(self, z):
        return [[0], [2], [7]]

    def expected_base(self, z):
        p, q = mp.exp(-softplus(-z[0])), mp.exp(-softplus(z[0]))
        terms = range(self.trials + 1)
        mass = lambda k: mp.binomial(7, k) * p**k * q ** (7 - k)
        return sum(mass(k) * mp.log(mp.binomial(7, k)) for k in terms)


class Categorical(Exponential):
    def grid(self):
        far = 10.0**self.reach
        rows = [[0, 0, 0], [1, -1, 0.5], [40, 0, 0], [-3, 80, 1], [0, 1e3, -1e3]]
        return [*rows, [1e3, 999, 0], [far, 0, -far], [-far, 1, 0], [0.1, 0.2, -90]]

    def normalizer(self, z):
        return mp.log(sum(map(mp.exp, z)))

    def mean(self, z):
        total = sum(map(mp.exp, z))
        return [mp.exp(e) / total for e in z]

    def fisher(self, z):
        p, ids = self.mean(z), range(len(z))
        others = lambda i: sum(p[j] for j in ids if j != i)
        return [
            [p[i] * others(i) if i == j else -p[i] * p[j] for j in ids] for i in ids
        ]

    def statistics(self, y):
        return [mp.mpf(int(c == y[0])) for c in range(3)]

    def labels(self, z):
        return [[0], [1], [2]]


class Poisson(Scalar):
    def grid(self):
        return [[x] for x in (-(10.0**self.reach), -80, -9, -1, 0, 2, 9, 14, 80, 1e3)]

    def normalizer(self, z):
        return mp.exp(z[0])

    def mean(self, z):
        return [mp.exp(z[0])]

    def fisher(self, z):
        return [[mp.exp(z[0])]]

    def base(self, y):
        return -mp.loggamma(y[0] + 1)

    def labels(self, z):
        centre = mp.floor(mp.exp(min(z[0], 15)))
        return [[0], [1], [centre], [centre + 2 * mp.floor(mp.sqrt(centre))]]

    def expected_base(self, z):
        rate = mp.exp(z[0])
        if rate < 500:
            number = 100 + 30 * int(rate)
            with mp.workdps(100):
                p, log_factorial, total = mp.exp(-rate), mp.mpf(0), mp.mpf(0)
                for k in range(1, number):
                    p *= rate / k
                    log_factorial += mp.log(k)
                    total += p * log_factorial
            return -total
        c = (mp.mpf(1) / 12, mp.mpf(1) / 24, mp.mpf(19) / 360, mp.mpf(9) / 80)
        series = sum(c[k] * rate ** -(k + 1) for k in range(4))
        entropy = (1 + mp.log(2 * mp.pi) + z[0]) / 2 - series
        return rate - z[0] * rate - entropy

    def base_slope(self, z):
        rate = mp.exp(z[0])
        if rate < 500:
            return super().base_slope(z)
        c = (mp.mpf(1) / 12, mp.mpf(1) / 24, mp.mpf(19) / 360, mp.mpf(9) / 80)
        of_entropy = 0.5 + sum((k + 1) * c[k] * rate ** -(k + 1) for k in range(4))
        return [-rate * z[0] - of_entropy]


class Geometric(Scalar):
    r = mp.mpf(1)

    def grid(self):
        sizes = [10.0**-self.reach, 1e-8, 1e-3, 0.3, 1, 5, 80, 6e2, 10.0**self.reach]
        return [[-x] for x in sizes]

    def normalizer(self, z):
        return -self.r * mp.log(-mp.expm1(z[0]))

    def mean(self, z):
        return [self.r * mp.exp(z[0]) / -mp.expm1(z[0])]

    def fisher(self, z):
        return [[self.r * mp.exp(z[0]) / mp.expm1(z[0]) ** 2]]

    def labels(self, z):
        centre = mp.floor(min(-1 / z[0], mp.mpf(2) ** 22))
        return [[0], [1], [centre], [10 * centre]]


class NegativeBinomial(Geometric):
    r = mp.mpf(2.5)

    def base(self, y):
        return mp.loggamma(y[0] + self.r) - mp.loggamma(self.r) - mp.loggamma(y[0] + 1)

    def expected_base(self, z):
        """E log Γ(y + r) − log Γ(r) − E log Γ(y + 1), from Malmsten's integral."""
        with mp.workdps(60):
            odds, r = mp.exp(z[0]) / -mp.expm1(z[0]), +self.r
            # Below the first t the integrand is odds·t at most, and beyond the last 0.
            first = -46 - mp.log(max(odds, 1))
            step, total = mp.mpf(1) / 6, mp.mpf(0)
            for k in range(int(first / step), int(5 / step)):
                t = mp.exp(k * step)
                gap = mp.exp(-t) - mp.exp(-r * t)
                rest = -mp.expm1(-r * mp.log1p(-odds * mp.expm1(-t)))
                total += rest * gap / -mp.expm1(-t)
            return step * total
