"""Mirror descent is the natural gradient in the other coordinates.

1. A mixture of 200 experts of which three are good, by exponentiated gradient:
   probabilities p as parameters, potential Σ p log p, so that p' ∝ p e^{−h g}. Beside
   it gradient descent that is projected on the simplex, each with the step size of its
   regret bound.
2. The two identities of a family with η its natural and μ its expectation parameters:

       mirror_descent       μ' = μ − h ∇_η L, the natural gradient in μ
       dual_mirror_descent  η' = η − h ∇_μ L, the natural gradient in η

   One step of the first fits a Gamma law by maximum likelihood; one of the second
   lands on the target of KL(q ‖ p). Both from anywhere, both by one line of optax.

    python examples/07_mirror_descent.py

mean loss, best expert    0.3300
mean loss, exponentiated  0.4200
mean loss, projected      0.4826
500 labels of Gamma(0.7, 2), one step from Gamma(5, 0.5): Gamma(0.705, 1.861),
maximum of likelihood to 2e-14
KL(q ‖ p), one dual step: q = p to 9e-14
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import geometry
from natgrad.families import Categorical, Gamma
from natgrad.transforms.mirror_descent import dual_mirror_descent, mirror_descent

jax.config.update("jax_enable_x64", True)  # the identities hold to rounding

EXPERTS, ROUNDS = 200, 400


def exponentiated_gradient():
    """Mean loss of a mixture of experts, and of the best expert in hindsight."""
    rng = np.random.default_rng(0)
    skill = np.where(np.arange(EXPERTS) < 3, 0.35, 0.5)  # three are better than chance
    losses = jnp.asarray(rng.random((ROUNDS, EXPERTS)) < skill, float)
    simplex = lambda p: optax.projections.projection_simplex(p)
    rate = float(np.sqrt(2 * np.log(EXPERTS) / ROUNDS))
    optimizers = {
        "exponentiated": mirror_descent(rate, geometry.DualPotential(Categorical())),
        "projected": optax.sgd(1 / np.sqrt(ROUNDS * EXPERTS / 4)),
    }
    results = {"best expert": float(losses.mean(0).min())}
    for name, tx in optimizers.items():

        def play(carry, loss, tx=tx):
            p, state = carry
            updates, state = tx.update(loss, state, p)
            return (simplex(optax.apply_updates(p, updates)), state), loss @ p

        p = jnp.full(EXPERTS, 1 / EXPERTS)
        run = jax.jit(lambda carry, play=play: jax.lax.scan(play, carry, losses)[1])
        results[name] = float(run((p, tx.init(p))).mean())
    for name, value in results.items():
        print(f"mean loss, {name:14} {value:.4f}")
    return results


def one_step(tx, loss, eta):
    gradient = jax.grad(loss)(eta)
    updates, _ = tx.update(gradient, tx.init(eta), eta)
    return optax.apply_updates(eta, updates)


def identities():
    """Largest relative errors of the two one-step identities."""
    family = Gamma()
    start = geometry.Point(family, "shape/rate", jnp.array([5.0, 0.5]))
    target = geometry.Point(family, "shape/rate", jnp.array([0.7, 2.0]))
    y = target.family.sample(jax.random.key(0), jnp.tile(target.natural, (500, 1)))
    nll = lambda eta: -jnp.mean(jax.vmap(lambda y: family.log_prob(eta, y))(y))
    fitted = one_step(mirror_descent(1.0, family), nll, start.natural)
    moments = jnp.array([jnp.mean(jnp.log(y)), jnp.mean(y)])
    likelihood = float(jnp.max(jnp.abs(family.mean(fitted) / moments - 1)))
    shape, rate = fitted[0] + 1, -fitted[1]
    print(
        f"500 labels of Gamma(0.7, 2), one step from Gamma(5, 0.5): Gamma({shape:.3f}, "
        f"{rate:.3f}),\nmaximum of likelihood to {likelihood:.0e}"
    )
    kl = lambda eta: family.kl(eta, target.natural)
    reached = one_step(dual_mirror_descent(1.0, family), kl, start.natural)
    divergence = float(jnp.max(jnp.abs(reached / target.natural - 1)))
    print(f"KL(q ‖ p), one dual step: q = p to {divergence:.0e}")
    return {"likelihood": likelihood, "divergence": divergence}


def main():
    return {"experts": exponentiated_gradient(), "identities": identities()}


if __name__ == "__main__":
    main()
