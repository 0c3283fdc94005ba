"""Oracles of the table in `laws`: log-normalisers and divergences at 120 digits.

They share no code with the library, and are differentiated by differences.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import mpmath as mp
import numpy as np

DIGITS = 120


def numbers(z):
    return [mp.mpf(float(entry)) for entry in np.ravel(z)]


def derivatives(f, x):
    """Value, gradient and Hessian of f at a list of mpmath numbers."""
    with mp.workdps(DIGITS):
        n = len(x)
        steps = [mp.mpf(10) ** -25 * (abs(e) if e else 1) for e in x]

        @functools.cache
        def at(*moves):
            return f([e + k * s for e, k, s in zip(x, moves, steps, strict=True)])

        unit = lambda i, k=1: tuple(k * int(i == j) for j in range(n))
        add = lambda a, b: tuple(map(sum, zip(a, b, strict=True)))
        value = at(*unit(-1))
        gradient = [
            (at(*unit(i)) - at(*unit(i, -1))) / (2 * steps[i]) for i in range(n)
        ]
        hessian = np.empty((n, n))
        for i in range(n):
            for j in range(n):
                corners = [
                    a * b * at(*add(unit(i, a), unit(j, b)))
                    for a in (1, -1)
                    for b in (1, -1)
                ]
                hessian[i, j] = sum(corners) / (4 * steps[i] * steps[j])
        return value, gradient, hessian


def exact_kl(law, z, z2):
    """KL(z ‖ z2) of the laws at exactly these floating-point numbers."""
    with mp.workdps(DIGITS):
        a, b = numbers(z), numbers(z2)
        if not law.exponential:
            return law.oracle(a, b)
        value, gradient, _ = derivatives(law.oracle, a)
        moves = [y - x for x, y in zip(a, b, strict=True)]
        inner = sum(g * move for g, move in zip(gradient, moves, strict=True))
        return law.oracle(b) - value - inner


def log_gamma(x):
    return mp.loggamma(x)


def dirichlet_normalizer(z):
    a = [e + 1 for e in z]
    return sum(map(log_gamma, a)) - log_gamma(sum(a))


def gamma_normalizer(shape, rate):
    return log_gamma(shape) - shape * mp.log(rate)


def normal_normalizer(z):
    return -(z[0] ** 2) / (4 * z[1]) - mp.log(-2 * z[1]) / 2 + mp.log(2 * mp.pi) / 2


def full_normalizer(z):
    h, p = mp.matrix(z[:2]), mp.matrix([[-2 * z[2], -z[3]], [-z[3], -2 * z[4]]])
    quadratic = (h.T * mp.lu_solve(p, h))[0]
    return quadratic / 2 - mp.log(mp.det(p)) / 2 + mp.log(2 * mp.pi)


def full_natural(source):
    m, s = source[:2], source[jnp.array([[2, 3], [3, 4]])]
    p = jnp.linalg.inv(s)
    free = jnp.stack([-p[0, 0] / 2, -p[0, 1], -p[1, 1] / 2])
    return jnp.concatenate([p @ m, free])


def full_fisher(source):
    s = np.array([[source[2], source[3]], [source[3], source[4]]])
    p = np.linalg.inv(s)
    duplication = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1.0]])
    fisher = np.zeros((5, 5))
    fisher[:2, :2] = p
    fisher[2:, 2:] = duplication.T @ np.kron(p, p) @ duplication / 2
    return fisher


def location_scale(fisher):
    """The Fisher information diag(fisher)/s² in (m, s)."""
    return lambda source: np.diag(fisher) / source[1] ** 2


def pair(f):
    return lambda s: jnp.stack([*f(s[0], s[1])])


def laplace_kl(z, z2):
    b, c, d = mp.exp(z[1]), mp.exp(z2[1]), abs(z[0] - z2[0])
    return mp.log(c / b) + d / c + b / c * mp.exp(-d / b) - 1


def cauchy_kl(z, z2):
    g, q, d = mp.exp(z[1]), mp.exp(z2[1]), z[0] - z2[0]
    return mp.log(((g + q) ** 2 + d**2) / (4 * g * q))


def logistic_kl(z, z2):
    t, delta = z[1] - z2[1], (z[0] - z2[0]) * mp.exp(-z2[1])
    c = lambda x: 2 * mp.log(2 * mp.cosh(x / 2))
    with mp.workdps(30):
        f = lambda e: mp.exp(-c(e)) * (c(e * mp.exp(t) + delta) - c(e) - t)
        corner = -delta * mp.exp(-t)
        return mp.quad(f, sorted([-80, -20, -5, 0, corner, 5, 20, 80]))


def von_mises_fisher(kappa):
    with mp.workdps(DIGITS):
        k = mp.mpf(float(kappa))
        ratio = mp.besseli(1, k) / mp.besseli(0, k)
        return np.diag([float(k * ratio), float(1 - ratio / k - ratio**2)])
