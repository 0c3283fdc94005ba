"""SOAP and KL-Shampoo as their papers write them, in NumPy, and gradients for them."""

from __future__ import annotations

import functools

import numpy as np

B1, B2, EPS, EVERY, LIMIT = 0.8, 0.9, 1e-3, 3, 6
SHAPES = {
    "square": (4, 4),
    "wide": (3, 5),
    "tall": (7, 3),  # its first axis is longer than max_dimension
    "kernel": (2, 2, 3, 4),
    "with a 1": (3, 1, 4),
    "row": (1, 5),
    "vector": (3,),
    "number": (),
}


def draw(steps, shapes=SHAPES, seed=0):
    """Gradients of some steps, [steps, ...] each, of unequal sizes along the axes."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        leaf = rng.normal(size=(steps, *shape))
        for axis, size in enumerate(shape):
            sizes = np.exp(rng.normal(size=size))
            leaf = np.moveaxis(np.moveaxis(leaf, axis + 1, -1) * sizes, -1, axis + 1)
        found[name] = 0.1 * leaf
    return found


def unfolded(tensor, axis):
    return np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)


def along(tensor, matrices):
    """(M_1 ⊗ M_2 ⊗ …) G by one dense Kronecker product."""
    whole = functools.reduce(np.kron, matrices)
    return (whole @ tensor.ravel()).reshape(tensor.shape)


class Paper:
    """One parameter: dense Kronecker products, and only what the papers write.

    The first basis is that of the library, if it has eigenvectors of S in it: in an
    eigenspace of several dimensions, such as the null space of the first GᵀG, any will
    do, but which one is taken decides what follows.
    """

    def __init__(self, name, shape, limit):
        self.name, self.shape = name, shape
        several = sum(size > 1 for size in shape) > 1
        self.own = [several and 1 < size <= limit for size in shape]
        self.m, self.v, self.t = np.zeros(shape), np.zeros(shape), 0
        self.q = [np.eye(size) for size in shape]
        self.s = [np.zeros((size, size)) for size in shape]
        self.values = [np.ones(size) for size in shape]

    def step(self, g, bases):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        mean = self.m / (1 - B1**self.t)
        if not any(self.own):
            self.v = B2 * self.v + (1 - B2) * g**2
            return mean / (np.sqrt(self.v / (1 - B2**self.t)) + EPS)
        d = self.soap(g, mean) if self.name == "soap" else self.kl_shampoo(g, mean)
        if self.t == 1 or self.t % EVERY == 0:
            self.renew(bases)
        return d

    def soap(self, g, mean):
        back = [q.T for q in self.q]
        if self.t == 1:
            d = mean / (np.sqrt(np.mean(g**2)) + EPS)
        else:
            self.v = B2 * self.v + (1 - B2) * along(g, back) ** 2
            corrected = self.v / (1 - B2 ** (self.t - 1))
            d = along(along(mean, back) / (np.sqrt(corrected) + EPS), self.q)
        for i in np.flatnonzero(self.own):
            rows = unfolded(g, i)
            self.s[i] = B2 * self.s[i] + (1 - B2) * rows @ rows.T
        return d

    def kl_shampoo(self, g, mean):
        if self.t == 1:
            start = np.mean(g**2) ** (1 / sum(self.own))
            for i in np.flatnonzero(self.own):
                self.values[i] = np.full(self.shape[i], start)
        inverse = [
            q / value @ q.T for q, value in zip(self.q, self.values, strict=True)
        ]
        new, values = list(self.s), list(self.values)
        for i in np.flatnonzero(self.own):
            others = [*inverse[:i], np.eye(g.shape[i]), *inverse[i + 1 :]]
            rows = unfolded(g, i)
            delta = rows @ unfolded(along(g, others), i).T / rows.shape[1]
            new[i] = B2 * self.s[i] + (1 - B2) * delta
            seen = np.diag(self.q[i].T @ delta @ self.q[i])
            values[i] = B2 * self.values[i] + (1 - B2) * seen
        used = self.values if self.t == 1 else values
        self.s, self.values = new, values
        roots = np.sqrt(functools.reduce(np.multiply.outer, used))
        back = [q.T for q in self.q]
        return along(along(mean, back) / (roots + EPS), self.q)

    def renew(self, bases):
        for i in np.flatnonzero(self.own):
            if self.t == 1:
                inner = bases[i].T @ self.s[i] @ bases[i]
                np.testing.assert_allclose(
                    bases[i].T @ bases[i], np.eye(len(inner)), atol=1e-12
                )
                values = np.diag(inner)
                np.testing.assert_allclose(inner, np.diag(values), atol=1e-12)
                assert np.all(np.diff(values) <= 1e-12)
                start = np.trace(np.diag(self.values[i]) - self.s[i]) / len(inner)
                self.q[i], self.values[i] = bases[i], values + start
            else:
                self.q[i], _ = np.linalg.qr(self.s[i] @ self.q[i])
