"""The laws of far_parameters.py: textbook formulas in mpmath, and their grids.

A class takes the precision whose range its points cover. `Exponential` gives A, ∇A, ∇²A
and what makes the entropy; `Other` the divergence and its gradient.
"""

from __future__ import annotations

import functools
import itertools

import mpmath as mp
import numpy as np

REACH = {"float32": 30, "float64": 200}


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


class Normal(Exponential):
    def valid(self, z):
        return z[1] < 0

    def grid(self):
        half = [10.0**k for k in (-self.reach // 2, -4, 0, 4, self.reach // 2)]
        out = [[r / s, -0.5 / s**2] for s, r in itertools.product(half, (0, 1, -30))]
        return out[:14]

    def normalizer(self, z):
        constant = mp.log(2 * mp.pi) / 2
        return -(z[0] ** 2) / (4 * z[1]) - mp.log(-2 * z[1]) / 2 + constant

    def mean(self, z):
        v = -1 / (2 * z[1])
        return [z[0] * v, (z[0] * v) ** 2 + v]

    def fisher(self, z):
        v = -1 / (2 * z[1])
        m = z[0] * v
        return [[v, 2 * m * v], [2 * m * v, 2 * v**2 + 4 * m**2 * v]]

    def statistics(self, y):
        return [y[0], y[0] ** 2]

    def labels(self, z):
        v = -1 / (2 * z[1])
        return [[z[0] * v + k * mp.sqrt(v)] for k in (-3, 0.1, 20)]


class LogNormal(Normal):
    def grid(self):
        rows = [(m, s) for s in (1e-3, 1, 6) for m in (0, 5, -60)]
        far = 10.0 ** (self.reach // 2)
        return [[m / s**2, -0.5 / s**2] for m, s in rows] + [[0, -(far**2)]]

    def statistics(self, y):
        return [mp.log(y[0]), mp.log(y[0]) ** 2]

    def base(self, y):
        return -mp.log(y[0])

    def expected_base(self, z):
        return z[0] / (2 * z[1])

    def labels(self, z):
        v = -1 / (2 * z[1])
        return [[mp.exp(z[0] * v + k * mp.sqrt(v))] for k in (-3, 0.1, 3)]


class InverseGaussian(Exponential):
    def valid(self, z):
        return max(z) < 0

    def grid(self):
        f = 10.0 ** (self.reach // 2)
        rows = [(1, 1), (1e-8, 1), (1e8, 1), (1, f), (1, 1 / f), (2, 1e4), (3, 1e-4)]
        rows += [(f, f * f), (1 / f, 1 / f), (f, 3), (1 / f, 2), (f, 1 / f)]
        return [[-l / (2 * m * m), -l / 2] for m, l in rows[:11]]

    def normalizer(self, z):
        return -2 * mp.sqrt(z[0] * z[1]) - mp.log(-2 * z[1]) / 2

    def mean(self, z):
        m, l = mp.sqrt(z[1] / z[0]), -2 * z[1]
        return [m, 1 / m + 1 / l]

    def fisher(self, z):
        m, l = mp.sqrt(z[1] / z[0]), -2 * z[1]
        return [[m**3 / l, -m / l], [-m / l, 1 / (m * l) + 2 / l**2]]

    def statistics(self, y):
        return [y[0], 1 / y[0]]

    def base(self, y):
        return -mp.log(2 * mp.pi * y[0] ** 3) / 2

    def expected_base(self, z):
        m, l = mp.sqrt(z[1] / z[0]), -2 * z[1]
        x = 2 * l / m
        if x > 2000:
            with mp.workdps(60):
                tail = sum(
                    (-1) ** k * mp.factorial(k) / x ** (k + 1) for k in range(60)
                )
        else:
            tail = mp.exp(x) * mp.e1(x)
        return -(mp.log(2 * mp.pi) + 3 * (mp.log(m) - tail)) / 2

    def labels(self, z):
        m, l = mp.sqrt(z[1] / z[0]), -2 * z[1]
        spread = 1 / mp.sqrt(1 + l / m)
        return [[m * mp.exp(k * spread)] for k in (-2, 0.1, 1)]


class VonMises(Exponential):
    def grid(self):
        far = 10.0**self.reach
        sizes = [1 / far, 1e-4, 0.3, 1.5, 3, 12, 17, 500, 1e4, 1e8, far]
        angles = [0.3, -2.9, 1.2, 2.0, 0.0, -1.5, 3.1, 0.35, 0.3001, -1.0, 0.31]
        moved = [
            [k * float(mp.cos(m)), k * float(mp.sin(m))]
            for k, m in zip(sizes, angles, strict=True)
        ]
        return [*moved, [0.0, 0.0], [500.0, 0.0], [1e-4, 0.0]]

    @functools.cached_property
    def pieces(self):
        @functools.cache
        def of(first, second):
            k = mp.hypot(first, second)
            if k > 500:
                # The asymptotic series, DLMF 10.40.1: e^κ/√(2πκ) Σ.
                sums = []
                for nu in (0, 1):
                    term, total, j = mp.mpf(1), mp.mpf(1), 0
                    while abs(term) > mp.mpf(10) ** -(mp.mp.dps + 5) and j < 2 * k:
                        j += 1
                        term *= -(4 * nu**2 - (2 * j - 1) ** 2) / (8 * k * j)
                        total += term
                    sums.append(total)
                log_i0 = k - mp.log(2 * mp.pi * k) / 2 + mp.log(sums[0])
                ratio = sums[1] / sums[0]
            elif k > 0:
                i0 = mp.besseli(0, k)
                log_i0, ratio = mp.log(i0), mp.besseli(1, k) / i0
            else:
                log_i0, ratio = mp.mpf(0), mp.mpf(0)
            per = ratio / k if k else mp.mpf(1) / 2
            return k, log_i0, per, 1 - per - ratio**2

        return of

    def normalizer(self, z):
        return mp.log(2 * mp.pi) + self.pieces(*z)[1]

    def mean(self, z):
        return [self.pieces(*z)[2] * e for e in z]

    def fisher(self, z):
        k, _, per, slope = self.pieces(*z)
        u = [e / k for e in z] if k else [mp.mpf(1), mp.mpf(0)]
        gap = slope - per
        return [[gap * u[i] * u[j] + per * (i == j) for j in (0, 1)] for i in (0, 1)]

    def statistics(self, y):
        return [mp.cos(y[0]), mp.sin(y[0])]

    def labels(self, z):
        k = self.pieces(*z)[0]
        centre = mp.atan2(z[1], z[0]) if k else mp.mpf(0)
        return [[centre + f / mp.sqrt(1 + k)] for f in (-2, 0.1, 1)]


class MultivariateNormal(Exponential):
    places = ((0, 0), (0, 1), (1, 1))

    def grid(self):
        f = 10.0 ** (self.reach // 2)
        rows = [
            (1, 2, 0.3, 1, -1),
            (f, f / 3, 0.5, 1, 0),
            (1 / f, 2 / f, -0.7, 0, 3),
            (1e4, 1e-4, 0.2, 1, 1),
            (1, 1, 0.99, -2, 1),
            (3, 1, -0.97, 10, 1),
            (f, 1 / f, 0.1, 1, 2),
            (2, f, 0.0, 30, 0),
        ]
        out = []
        for a, b, r, m, n in rows:
            # Scales 1/a and 1/b, correlation −r, means m/a and n/b.
            free = [-a * a / 2, -r * a * b, -b * b / 2]
            out.append([a * m + r * a * n, b * n + r * b * m, *free])
        return out

    def valid(self, z):
        p = [mp.mpf(float(e)) for e in z[2:]]
        return z[2] < 0 and 4 * p[0] * p[2] > p[1] ** 2

    def moments(self, z):
        p = mp.matrix([[-2 * z[2], -z[3]], [-z[3], -2 * z[4]]])
        det = p[0, 0] * p[1, 1] - p[0, 1] ** 2
        s = [[p[1, 1] / det, -p[0, 1] / det], [-p[0, 1] / det, p[0, 0] / det]]
        return [sum(s[i][j] * z[j] for j in (0, 1)) for i in (0, 1)], s, det

    def normalizer(self, z):
        m, _, det = self.moments(z)
        return (m[0] * z[0] + m[1] * z[1]) / 2 - mp.log(det) / 2 + mp.log(2 * mp.pi)

    def mean(self, z):
        m, s, _ = self.moments(z)
        return [*m, *(s[i][j] + m[i] * m[j] for i, j in self.places)]

    def fisher(self, z):
        m, s, _ = self.moments(z)
        both = lambda i, j, k: s[i][j] * m[k] + s[i][k] * m[j]

        def four(i, j, k, l):
            products = s[i][k] * s[j][l] + s[i][l] * s[j][k]
            products += m[i] * m[k] * s[j][l] + m[i] * m[l] * s[j][k]
            return products + m[j] * m[k] * s[i][l] + m[j] * m[l] * s[i][k]

        top = [[*s[i], *(both(i, *p) for p in self.places)] for i in (0, 1)]
        rest = [
            [*(both(i, *p) for i in (0, 1)), *(four(*p, *q) for q in self.places)]
            for p in self.places
        ]
        return top + rest

    def statistics(self, y):
        return [*y, *(y[i] * y[j] for i, j in self.places)]

    def labels(self, z):
        m, s, _ = self.moments(z)
        return [[e + k * mp.sqrt(s[i][i]) for i, e in enumerate(m)] for k in (0.5, -2)]


class MultivariateNormalDiag(Exponential):
    def __init__(self, kind):
        self.normal = Normal(kind)
        super().__init__(kind)

    def split(self, z):
        return [z[0], z[2]], [z[1], z[3]]

    def valid(self, z):
        return max(z[2:]) < 0

    def grid(self):
        rows = self.normal.grid()
        ids = [(0, 12), (1, 5), (4, 13), (8, 2), (11, 9), (7, 3)]
        return [[a, c, b, d] for (a, b), (c, d) in ((rows[i], rows[j]) for i, j in ids)]

    def normalizer(self, z):
        return sum(map(self.normal.normalizer, self.split(z)))

    def mean(self, z):
        (a, b), (c, d) = map(self.normal.mean, self.split(z))
        return [a, c, b, d]

    def fisher(self, z):
        blocks, out = [self.normal.fisher(x) for x in self.split(z)], []
        for i in range(4):
            row = [mp.mpf(0)] * 4
            row[i % 2], row[2 + i % 2] = blocks[i % 2][i // 2]
            out.append(row)
        return out

    def statistics(self, y):
        return [*y, *(e**2 for e in y)]

    def labels(self, z):
        sides = [self.normal.labels(x) for x in self.split(z)]
        return [[a[0], b[0]] for a, b in zip(*sides, strict=True)]


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


EXPONENTIAL = {
    "bernoulli": Bernoulli,
    "binomial": Binomial,
    "categorical": Categorical,
    "poisson": Poisson,
    "geometric": Geometric,
    "negative_binomial": NegativeBinomial,
    "exponential": Rate,
    "weibull": Weibull,
    "gamma": Gamma,
    "inverse_gamma": InverseGamma,
    "beta": Beta,
    "dirichlet": Dirichlet,
    "normal": Normal,
    "log_normal": LogNormal,
    "inverse_gaussian": InverseGaussian,
    "von_mises": VonMises,
    "multivariate_normal": MultivariateNormal,
    "multivariate_normal_diag": MultivariateNormalDiag,
}
OTHERS = {
    "normal_mean": NormalMean,
    "normal_mean_log_scale": NormalMeanLogScale,
    "laplace": Laplace,
    "cauchy": Cauchy,
    "logistic": Logistic,
    "student_t_half": student(0.5),
    "student_t": StudentT,
    "student_t_4": student(4),
    "student_t_1000": student(1000),
}
