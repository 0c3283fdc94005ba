"""Complex wave functions of three spins, and what numpy knows of them.

Derivatives of log ψ are by hand; H is a matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from natgrad.tree import split_complex

SPINS, HIDDEN, DAMPING = 3, 2, 1e-2
S = np.array(np.meshgrid(*[[-1.0, 1.0]] * SPINS)).reshape(SPINS, -1).T
COUNT = len(S)
_drawn = np.random.default_rng(0).normal(size=(2, COUNT, COUNT))
H = _drawn[0] + 1j * _drawn[1]
H = (H + H.conj().T) / 2


def drawn(seed, *shapes, scale=0.4):
    rng = np.random.default_rng(seed)
    return [scale * (rng.normal(size=s) + 1j * rng.normal(size=s)) for s in shapes]


def log_psi(params, s):
    """A restricted Boltzmann machine, holomorphic; and c̄ s, which is not."""
    angles = s @ params["w"] + params["b"].astype(complex)[None]
    field = params["a"] + jnp.conj(params["c"]) if "c" in params else params["a"]
    return jnp.sum(jnp.log(jnp.cosh(angles)), axis=-1) + s @ field


def derivatives(params, s):
    """Leaf by leaf (∂/∂x, ∂/∂y or None) of log ψ by hand, each [N, size]."""
    tanh = np.tanh(s @ params["w"] + params["b"])
    by_w = (s[:, :, None] * tanh[:, None]).reshape(len(s), -1)
    found = {"a": (s, 1j * s), "b": (tanh, None), "w": (by_w, 1j * by_w)}
    if np.iscomplexobj(params["b"]):
        found["b"] = tanh, 1j * tanh
    if "c" in params:
        found["c"] = s, -1j * s
    return found


class Problem(NamedTuple):
    """A wave function on weighted configurations, and what numpy knows of it."""

    params: dict
    s: np.ndarray
    weights: np.ndarray

    @property
    def inputs(self):
        return {"s": jnp.asarray(self.s), "weight": jnp.asarray(self.weights)}

    @property
    def model(self):
        return ng.Model(
            lambda p, inputs: log_psi(p, inputs["s"].astype(complex)),
            ng.families.Unnormalized(),
            weights=lambda inputs: inputs["weight"],
        )

    @property
    def tree(self):
        return jax.tree.map(jnp.asarray, self.params)

    @property
    def centred(self):
        """√ω (O − Ō), [N, P], by real parameters: x before y of each leaf."""
        found = derivatives(self.params, self.s)
        columns = [o for name in sorted(found) for o in found[name] if o is not None]
        each, share = np.hstack(columns), self.weights / self.weights.sum()
        return np.sqrt(share)[:, None] * (each - share @ each)

    @property
    def matrix(self):
        return np.real(self.centred.conj().T @ self.centred)

    def force(self, values):
        """Re⟨(O − Ō)* a⟩."""
        root = np.sqrt(self.weights / self.weights.sum())
        return np.real(self.centred.conj().T @ (root * values))


def problem(kind, full=True):
    """Complex parameters; some real and the rest not holomorphic; all real."""
    w, b, a, c = drawn(1, (SPINS, HIDDEN), HIDDEN, SPINS, SPINS)
    params = {"w": w, "b": b, "a": a}
    if kind == "mixed":
        params |= {"b": b.real, "c": c}
    s = S if full else S[[0, 3, 3, 5, 6, 1, 0]]
    psi = np.exp(np.asarray(log_psi(params, s.astype(complex))))
    return Problem(params, s, np.abs(psi) ** 2 if full else np.ones(len(s)))


def psi_of(params):
    return jnp.exp(log_psi(params, jnp.asarray(S, complex)))


def local_energies(params):
    psi = psi_of(params)
    return jnp.asarray(H) @ psi / psi


def energy(psi):
    return np.real(np.vdot(psi, H @ psi) / np.vdot(psi, psi))


def ravel(tree):
    pairs = split_complex(tree)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(pairs)])
