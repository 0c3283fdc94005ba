"""Normal, log-normal and inverse Gaussian laws, and those of directions and vectors."""

from __future__ import annotations

import functools
import itertools

import mpmath as mp
from law_base import Exponential


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
