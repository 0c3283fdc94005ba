"""Over which labels? The exact, the sampled and the empirical Fisher information.

1. The exact one has three definitions that share no code: the Hessian of the KL
   divergence, score outer products, and products Jᵀ F_z J v. On a network with three
   classes they agree to rounding.
2. With n labels drawn from the model it is unbiased, with an error like 1/√n.
3. With the data's own labels it is another matrix. On the linear regression of
   Kunstner, Hennig & Balles (2019, figure 1), y = 2 + 2x + ε, the natural gradient step
   from anywhere is the way to the optimum, and the empirical one is not: it points
   elsewhere, and it is far too short where the data are fitted badly.

    python examples/02_three_fishers.py

exact: largest relative difference of three definitions 3e-16
sampled, n =    1: relative error 0.4301
sampled, n =   16: relative error 0.1208
sampled, n =  256: relative error 0.0264
from (2.0, 4.5): cosine -0.160, length 0.133; loss above its minimum 8.61, after the
empirical step 7.93, the natural 2e-16                      ... and three more starts
"""

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from natgrad.curvature import Dense, Empirical, KLHessian, MatrixFree, Sampled

jax.config.update("jax_enable_x64", True)  # agreement to rounding is the point here


def network(params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def relative_error(matrix, reference):
    return jnp.linalg.norm(matrix - reference) / jnp.linalg.norm(reference)


def three_definitions():
    """The largest relative difference from score outer products."""
    model, params, x = classifier()
    reference, *others = (
        jax.jit(lambda params, curvature=curvature: curvature.at(params, x).dense())(
            params
        )
        for curvature in (Dense(model), KLHessian(model), MatrixFree(model))
    )
    difference = max(float(relative_error(other, reference)) for other in others)
    print(f"exact: largest relative difference of three definitions {difference:.0e}")
    return difference


def sampled_errors():
    """{n: the mean relative error over 8 keys with n sampled labels}."""
    model, params, x = classifier()
    reference = jax.jit(lambda params: Dense(model).at(params, x).dense())(params)
    errors = {}
    for n in (1, 16, 256):

        def error(key, n=n):
            drawn = Dense(model, Sampled(n)).at(params, x, key=key).dense()
            return relative_error(drawn, reference)

        keys = jax.random.split(jax.random.key(1), 8)
        errors[n] = float(jnp.mean(jax.jit(jax.vmap(error))(keys)))
        print(f"sampled, n = {n:4}: relative error {errors[n]:.4f}")
    return errors


def classifier():
    """(model, parameters, inputs) of a small network with unequal classes."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}
    params = {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(40, 4)))
    return ng.Model(network, ng.families.Categorical()), params, x


def empirical_steps():
    """For each starting point, how the empirical step compares with the natural one."""
    rng = np.random.RandomState(0)  # the paper's data
    x = np.stack([np.ones(1000), rng.lognormal(0, 0.75, 1000)], axis=1)
    y = (x @ np.array([2.0, 2.0]) + rng.randn(1000))[:, None]
    x, y = jnp.asarray(x), jnp.asarray(y)
    model = ng.Model(lambda theta, x: (x @ theta)[:, None], ng.families.NormalMean())
    optimum, *_ = np.linalg.lstsq(x, y[:, 0])

    @jax.jit
    def compare(theta):
        gradient = jax.grad(model.loss)(theta, x, y)
        natural = Dense(model).at(theta, x).solve(gradient)
        empirical = Dense(model, Empirical()).at(theta, x, y).solve(gradient)
        lengths = jnp.linalg.norm(natural), jnp.linalg.norm(empirical)
        excess = lambda theta: model.loss(theta, x, y) - model.loss(optimum, x, y)
        return {
            "cosine": natural @ empirical / (lengths[0] * lengths[1]),
            "length": lengths[1] / lengths[0],
            "excess": excess(theta),
            "excess_natural": excess(theta - natural),
            "excess_empirical": excess(theta - empirical),
        }

    steps = {}
    for start in ((2.0, 4.5), (1.0, 0.0), (4.5, 3.0), (-0.5, 3.0)):
        step = jax.tree.map(float, compare(jnp.array(start)))
        steps[start] = step
        print(
            f"from {start}: cosine {step['cosine']:.3f}, length {step['length']:.3f}; "
            f"loss above its minimum {step['excess']:.2f}, after the empirical step "
            f"{step['excess_empirical']:.2f}, the natural "
            f"{abs(step['excess_natural']):.0e}"
        )
    return steps


def main():
    return {
        "definitions": three_definitions(),
        "sampled": sampled_errors(),
        "empirical": empirical_steps(),
    }


if __name__ == "__main__":
    main()
