"""Complex parameters against the same network with pairs of real ones, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import LAMBDA, MODEL, X, Y, start
from problems import relative_error

import natgrad as ng
from natgrad.curvature import Dense

STEPS = 3


def real_part(w):
    """Real logits from complex weights, not holomorphic."""
    return w.real + jnp.sin(w.imag) * w.real


COMPLEX = ng.Model(
    lambda p, x: MODEL.apply({"w": real_part(p["w"]), "b": p["b"]}, x),
    MODEL.family,
    example_inputs=X[:1],
)
BY_HAND = ng.Model(
    lambda p, x: COMPLEX.apply({"w": p["x"] + 1j * p["y"], "b": p["b"]}, x),
    MODEL.family,
    example_inputs=X[:1],
)


def params():
    return start() | {"w": start()["w"] * (1 + 0.5j)}


def by_hand(tree):
    return {"b": tree["b"], "x": tree["w"].real, "y": tree["w"].imag}


def path(tx, model, params, needs):
    """The parameters after each of a few steps, [STEPS, ...]."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(model.loss)(params, X, Y)
        # optax descends along ∂/∂x + i ∂/∂y.
        gradient = jax.tree.map(jnp.conj, gradient)
        known = {"inputs": X, "targets": Y, "value": loss, "value_fn": model.loss}
        known |= {"grad": gradient, "model_params": params}
        arguments = {name: known[name] for name in needs}
        updates, state = tx.update(gradient, state, params, **arguments)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS)[1]
    return jax.jit(run)(params)


def applied(model):
    return optax.chain(
        ng.scale_by_curvature(Dense(model), damping=LAMBDA),
        ng.scale_by_norm_constraint(0.5, 1e-2),
        optax.scale_by_learning_rate(0.5),
    )


def marquardt(model):
    dense = ng.scale_by_curvature(Dense(model), damping=LAMBDA)
    accelerated = ng.geodesic_acceleration(dense, model)
    inner = optax.chain(accelerated, ng.scale_by_quadratic_model(model))
    return ng.levenberg_marquardt(inner, model)


def masked(model):
    dense = ng.scale_by_curvature(Dense(model), damping=LAMBDA)
    mask = lambda tree: {name: name != "b" for name in tree}
    return optax.chain(optax.masked(dense, mask), optax.scale(-0.3))


SEARCH = "inputs", "targets", "value", "value_fn"
CASES = {
    "momentum and decay": (
        lambda model: ng.natural_gradient(
            0.3, model, momentum=0.9, weight_decay=0.1, curvature=Dense, decay=0.5
        ),
        ("inputs",),
    ),
    "spring": (lambda model: ng.spring(0.3, model), ("inputs",)),
    "diagonal": (lambda model: ng.diagonal_fisher(0.3, model), ("inputs",)),
    "kfac": (lambda model: ng.kfac(0.3, model), ("inputs",)),
    "norm constraint": (applied, ("inputs",)),
    "masked": (masked, ("inputs", "model_params")),
    "marquardt": (marquardt, SEARCH),
    "divergence": (
        lambda model: optax.chain(
            optax.scale(-1.0), ng.scale_by_kl_trust_region(model, 1e-3)
        ),
        ("inputs",),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_pairs(name):
    make, needs = CASES[name]
    found = path(make(COMPLEX), COMPLEX, params(), needs)
    expected = path(make(BY_HAND), BY_HAND, by_hand(params()), needs)
    assert jnp.iscomplexobj(found["w"])
    moved = np.abs(np.diff(found["w"], axis=0)).max()
    assert moved > 1e-4
    for part, right in by_hand(found).items():
        assert relative_error(right, expected[part]) < 1e-8


def test_the_direction_descends_as_in_optax():
    """F⁻¹ of ∂/∂x + i ∂/∂y lowers the loss; of jax.grad's conjugate it need not."""
    tx = ng.scale_by_curvature(Dense(COMPLEX), damping=LAMBDA)
    loss = lambda p: COMPLEX.loss(p, X, Y)

    @jax.jit
    def slope(p):
        gradient = jax.tree.map(jnp.conj, jax.grad(loss)(p))
        direction, _ = tx.update(gradient, tx.init(p), p, inputs=X)
        along = lambda t: loss(jax.tree.map(lambda a, d: a - t * d, p, direction))
        return jax.grad(along)(0.0), ng.tree.inner(
            *map(ng.tree.split_complex, (gradient, direction))
        )

    given, expected = slope(params())
    assert given < -1e-3
    assert relative_error(given, -expected) < 1e-9


def test_observed_and_saved_statistics_take_complex_parameters(tmp_path):
    """observe, then a plain update; statistics of the pairs, saved and loaded."""
    curvature = Dense(COMPLEX)
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA)
    gradient = jax.tree.map(jnp.ones_like, params())
    expected, _ = tx.update(gradient, tx.init(params()), params(), inputs=X)
    for of in (tx, curvature):
        state = ng.observe(of, tx.init(params()), params(), inputs=X)
        found, _ = tx.update(gradient, state, params())
        assert relative_error(found["w"].imag, expected["w"].imag) < 1e-12
    pairs = ng.tree.split_complex(params())
    average = curvature.over(pairs, [(X[:2], None), (X[2:], None)])
    ng.save(tmp_path / "f.npz", curvature, average.statistics)
    loaded = ng.load(tmp_path / "f.npz", curvature, pairs)
    metric = curvature.metric(loaded, pairs)
    solved = metric.solve(ng.tree.split_complex(gradient), LAMBDA)
    joined = ng.tree.join_complex(solved)
    assert relative_error(joined["w"].real, expected["w"].real) < 1e-9


def test_what_takes_no_complex_leaves_says_so():
    refused = pytest.raises(ValueError, match=r"complex128.*split_complex")
    for form in ng.CURVATURES.values():
        at = form(COMPLEX).at
        with refused:
            jax.eval_shape(lambda p, at=at: at(p, X, Y, jax.random.key(0)), params())
    with refused:
        Dense(COMPLEX).over(params(), [(X, None)])
    metric = Dense(COMPLEX).at(ng.tree.split_complex(params()), X)
    with pytest.raises(ValueError, match=r"like the parameters\. Expected .*Pair"):
        metric.solve(params(), LAMBDA)
    tx = ng.scale_by_curvature(Dense(COMPLEX), damping=LAMBDA)
    state, real = tx.init(params()), jax.tree.map(jnp.real, params())
    with pytest.raises(ValueError, match="must be shaped like the parameters"):
        tx.update(real, state, params(), inputs=X)
    with pytest.raises(ValueError, match="must be shaped like the parameters"):
        tx.update(params(), tx.init(real), real, inputs=X)
    with refused:
        ng.compare.compare(COMPLEX, params(), X, Y)
