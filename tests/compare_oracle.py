"""A network small enough to work everything out in NumPy, sharing no code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng

DAMPING, STEP_SIZE = 0.05, 0.7
# Widths, and where b1, w1, b2, w2 lie in the vector.
SIZES = (2, 2, 3)
BLOCKS = {"one/b + w": np.arange(6), "two/b + w": np.arange(6, 15)}


def apply(params, inputs):
    one, two = params["one"], params["two"]
    return jnp.tanh(inputs @ one["w"] + one["b"][None]) @ two["w"] + two["b"][None]


def problem():
    """A tanh network under a three-class law: (model, params, inputs, targets)."""
    draw = np.random.default_rng(3)
    layer = lambda i, o: {"b": draw.normal(size=o), "w": draw.normal(size=(i, o))}
    params = {"one": layer(2, 2), "two": layer(2, 3)}
    params = jax.tree.map(jnp.asarray, params)
    inputs = jnp.asarray(draw.normal(size=(12, 2)))
    targets = jnp.asarray(draw.integers(0, 3, size=12))
    return ng.Model(apply, ng.families.Categorical()), params, inputs, targets


class Oracle:
    """The same problem in NumPy, parameters in ravel_pytree order."""

    def __init__(self, params, inputs, targets):
        self.x, self.y = np.asarray(inputs), np.asarray(targets)
        self.theta = np.concatenate(
            [np.ravel(params[k][leaf]) for k in ("one", "two") for leaf in ("b", "w")]
        )
        p, h = self.probabilities(self.theta), self.hidden(self.theta)
        w2 = self.theta[9:].reshape(2, 3)
        ones = np.ones((len(self.x), 1))
        inner = np.einsum("nh,hc->nch", 1 - h**2, w2)  # dz/d(pre-activation)
        by_layer = (
            (np.concatenate([ones, self.x], 1), inner),
            (np.concatenate([ones, h], 1), np.broadcast_to(np.eye(3), (12, 3, 3))),
        )
        jacobian = np.concatenate(
            [np.einsum("ni,nco->ncio", a, b).reshape(12, 3, -1) for a, b in by_layer],
            axis=2,
        )  # [N, C, P]
        scores = np.einsum("ncp,nc->np", jacobian, np.eye(3)[self.y] - p)
        f_z = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
        self.gradient = -scores.mean(axis=0)
        exact = np.einsum("ncp,ncd,ndq->pq", jacobian, f_z, jacobian) / 12
        leaves = np.repeat(np.arange(4), (2, 4, 3, 6))
        kfac = np.zeros_like(exact)
        for place, (a, b) in zip(BLOCKS.values(), by_layer, strict=True):
            out = np.einsum("nco,ncd,ndp->op", b, f_z, b) / 12
            kfac[np.ix_(place, place)] = np.kron(a.T @ a / 12, out)
        self.matrices = {
            **dict.fromkeys(("dense", "kl_hessian", "matrix_free"), exact),
            "block_diagonal": exact * (leaves[:, None] == leaves),
            "diagonal": np.diag(np.diag(exact)),
            "kfac": kfac,
            "empirical": scores.T @ scores / 12,
        }

    def hidden(self, theta):
        return np.tanh(self.x @ theta[2:6].reshape(2, 2) + theta[:2])

    def probabilities(self, theta):
        z = self.hidden(theta) @ theta[9:].reshape(2, 3) + theta[6:9]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def loss(self, theta):
        p = self.probabilities(theta)
        return -np.mean(np.log(p[np.arange(len(self.y)), self.y]))

    def directions(self, name):
        solve = lambda m: np.linalg.solve(m + DAMPING * np.eye(len(m)), self.gradient)
        return solve(self.matrices[name]), solve(self.matrices["dense"])

    def figures(self, name, place=slice(None)):
        """Those of a part of the parameters."""
        exact = self.matrices["dense"][place][:, place]
        matrix = self.matrices[name][place][:, place]
        own, other = (d[place] for d in self.directions(name))
        damped = DAMPING * np.eye(len(exact))
        ratios = np.linalg.eigvals(np.linalg.solve(exact + damped, matrix + damped))
        ratios = np.sort(ratios.real)
        logdet = lambda m: np.linalg.slogdet(m)[1]
        trace = np.trace(np.linalg.solve(exact + damped, matrix + damped))
        gain = logdet(matrix + damped) - logdet(exact + damped)
        dimension = lambda m: np.trace(m @ np.linalg.inv(m + damped))
        norm = np.linalg.norm
        return {
            "relative_error": norm(matrix - exact) / norm(exact),
            "spectral_error": norm(matrix - exact, 2) / norm(exact, 2),
            "trace_ratio": np.trace(matrix) / np.trace(exact),
            "divergence": (trace - len(exact) - gain) / 2,
            "step_cosine": own @ other / norm(own) / norm(other),
            "step_norm_ratio": norm(own) / norm(other),
            "lowest_ratio": ratios[0],
            "median_ratio": np.median(ratios),
            "highest_ratio": ratios[-1],
            "effective_dimension": dimension(matrix),
            "exact_effective_dimension": dimension(exact),
        }

    def point(self, name, size):
        """What is predicted and what happens at one step size."""
        d = size * self.directions(name)[0]
        p, q = self.probabilities(self.theta), self.probabilities(self.theta - d)
        kl = d @ self.matrices["dense"] @ d / 2
        own_kl = d @ self.matrices[name] @ d / 2
        return {
            "predicted_loss_decrease": self.gradient @ d - kl,
            "own_predicted_loss_decrease": self.gradient @ d - own_kl,
            "actual_loss_decrease": self.loss(self.theta) - self.loss(self.theta - d),
            "predicted_kl": kl,
            "own_predicted_kl": own_kl,
            "actual_kl": np.mean(np.sum(p * np.log(p / q), axis=1)),
        }
