"""Kunstner, Hennig & Balles in NumPy, from the paper and not from the library."""

from __future__ import annotations

import numpy as np
from scipy.special import expit


def clipped_sigmoid(f):
    return np.clip(expit(f), 1e-8, 1 - 1e-8)


class Oracle:
    """A regression on X [N, P] and y [N] with prior variance v."""

    def __init__(self, X, y, logistic, v=np.inf):
        self.X, self.y, self.logistic, self.v = X, y, logistic, v
        self.N, self.P = X.shape

    @classmethod
    def of(cls, problem, logistic):
        arrays = (np.asarray(a) for a in (problem.features, problem.targets))
        return cls(*arrays, logistic, float(problem.prior_variance))

    def mean(self, theta):
        f = self.X @ theta
        return clipped_sigmoid(f) if self.logistic else f

    def loss(self, theta):
        p = self.mean(theta)
        if self.logistic:
            terms = -self.y * np.log(p)
            terms -= (1 - self.y) * np.log(clipped_sigmoid(-self.X @ theta))
        else:
            terms = (p - self.y) ** 2 / 2
        return terms.mean() + theta @ theta / (2 * self.v * self.N)

    def gradient(self, theta):
        r = self.mean(theta) - self.y
        return self.X.T @ r / self.N + theta / (self.v * self.N)

    def fisher(self, theta):
        p = self.mean(theta)
        w = p * (1 - p) if self.logistic else np.ones(self.N)
        return self.X.T @ np.diag(w) @ self.X / self.N

    def empirical(self, theta):
        rows = self.X * (self.mean(theta) - self.y)[:, None]
        return rows.T @ rows / self.N

    def direction(self, method, theta, damping):
        g = self.gradient(theta)
        if method == "GD":
            return g
        matrix = self.fisher(theta) if method == "NGD" else self.empirical(theta)
        return np.linalg.solve(matrix + damping * np.eye(self.P), g)

    def run(self, method, rate, damping, steps=100, cosines=None):
        """Losses until the run stops; appends cos(NGD, EFGD) to `cosines`."""
        theta = np.zeros(self.P)
        losses = [self.loss(theta)]
        for _ in range(steps):
            d = self.direction(method, theta, damping)
            if cosines is not None:
                natural = self.direction("NGD", theta, damping)
                empirical = self.direction("EFGD", theta, damping)
                norms = np.linalg.norm(natural) * np.linalg.norm(empirical)
                cosines.append(natural @ empirical / norms)
            theta = theta - rate * d
            losses.append(self.loss(theta))
            if losses[-1] > 100 * losses[0]:
                break
        return np.array(losses)
