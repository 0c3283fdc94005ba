"""Small models that the tests share: an MLP under each family, and its data."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from natgrad import families
from natgrad.curvature import Empirical, Exact, Sampled

INPUTS, HIDDEN, EXAMPLES = 3, 4, 7


def mlp(params, x):
    """tanh MLP, [N, I] -> [N, O]."""
    h = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"][None])
    return h @ params["out"]["w"] + params["out"]["b"][None]


def mlp_params(key, outputs, dtype=jnp.float64, inputs=INPUTS, hidden=HIDDEN):
    """Random parameters of `mlp`."""
    k1, k2, k3, k4 = jax.random.split(key, 4)
    normal = lambda key, *shape: 0.7 * jax.random.normal(key, shape, dtype)
    return {
        "in": {"w": normal(k1, inputs, hidden), "b": normal(k2, hidden)},
        "out": {"w": normal(k3, hidden, outputs), "b": normal(k4, outputs)},
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """A family, the number of outputs an MLP needs for it, and the link to z."""

    family: families.Family
    outputs: int
    link: Callable = lambda z: z

    def model(self, **options) -> ng.Model:
        options = {"example_inputs": jnp.zeros((1, INPUTS))} | options
        apply = lambda params, x: self.link(mlp(params, x))
        return ng.Model(apply, self.family, **options)

    def problem(self, dtype="float64", seed=0, examples=EXAMPLES, **options):
        """(model, params, x, y), y drawn from the model at other parameters."""
        options = {"example_inputs": jnp.zeros((1, INPUTS), dtype)} | options
        params, x, y = _arrays(self, dtype, seed, examples)
        return self.model(**options), jax.tree.map(lambda leaf: leaf, params), x, y


@functools.cache
def _arrays(case, dtype, seed, examples):
    """The arrays of a problem; operation by operation, which the cases share."""
    keys = jax.random.split(jax.random.PRNGKey(seed), 4)
    params = mlp_params(keys[0], case.outputs, dtype)
    x = jax.random.normal(keys[1], (examples, INPUTS), dtype)
    truth = mlp_params(keys[2], case.outputs, dtype)
    return params, x, case.model().sample(keys[3], truth, x)


_positive = lambda z: 0.3 + jax.nn.softplus(z)

CASES = {
    "bernoulli": Case(families.Bernoulli(), 2),
    "categorical": Case(families.Categorical(), 3),
    "normal_mean": Case(families.NormalMean(0.7), 2),
    "normal_mean_log_scale": Case(families.NormalMeanLogScale(), 2),
    "poisson": Case(families.Poisson(), 1),
    "gamma": Case(
        families.Gamma(),
        2,
        lambda z: jnp.stack([_positive(z[..., 0]) - 1, -_positive(z[..., 1])], -1),
    ),
    "exponential": Case(families.Exponential(), 1, lambda z: -_positive(z)),
    "student_t": Case(families.StudentT(4.0), 2),
    "normal": Case(
        families.Normal(),
        2,
        lambda z: jnp.stack([z[..., 0], -_positive(z[..., 1])], -1),
    ),
}


def relative_error(given, expected):
    """Frobenius norm of the difference over that of `expected`; nothing to compile."""
    given, expected = np.asarray(given, "float64"), np.asarray(expected, "float64")
    assert given.shape == expected.shape
    return np.linalg.norm(given - expected) / (np.linalg.norm(expected) or 1.0)


def ravel(tree):
    """The leaves of a tree as one vector; of arrays, there is nothing to compile."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return jax.flatten_util.ravel_pytree(tree)[0]
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


LABELS = {"exact": Exact(), "sampled": Sampled(3), "empirical": Empirical()}


def dense_of(curvature, *batch):
    """The matrix of a curvature at a batch, compiled."""
    return dense_of_each([curvature], *batch)[0]


def dense_of_each(curvatures, *batch):
    """The matrices of several curvatures at a batch, by one program."""
    return jax.jit(lambda *batch: [c.at(*batch).dense() for c in curvatures])(*batch)
