"""No product of the library rounds its operands to TF32 or bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kfac_problems import normal
from lowering import operations

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC, Dense, Gram, LayerDiagonal, Sampled
from natgrad.layers import Reduce, jaxprs
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov

HIGH = jax.lax.Precision.HIGH  # the model's own products, and their derivatives
KEY = jax.random.PRNGKey(0)


def apply(params, x):
    """A convolution, a weight used twice, heads, attention to itself, a dense layer."""
    names, x = ("NHWC", "HWIO", "NHWC"), x.astype(params["conv"].dtype)
    x = jnp.tanh(
        jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=names, precision=HIGH
        )
    ).reshape(x.shape[0], -1, 4)
    for _ in range(2):
        x = jnp.tanh(jnp.matmul(x, params["twice"], precision=HIGH))
    x = x + jnp.einsum("nsi,nti,ntj->nsj", x, x, x, precision=HIGH)
    x = jnp.einsum("nsi,hio->nsho", x, params["heads"], precision=HIGH)
    out = jnp.matmul(x.reshape(x.shape[0], -1), params["out"], precision=HIGH)
    return out + params["bias"][None]


PARAMS = {
    "conv": normal(0, 3, 3, 2, 4),
    "twice": normal(1, 4, 4),
    "heads": normal(2, 2, 4, 3),
    "out": normal(3, 54, 5),
    "bias": normal(4, 5),
}
X, Y = normal(5, 4, 3, 3, 2), jnp.arange(4)
MODEL = ng.Model(apply, ng.families.Categorical(), example_inputs=X[:1])
FORMS = {
    "kfac": (KFAC(MODEL, Sampled(1)), FactoredTikhonov()),
    "reduce": (KFAC(MODEL, Sampled(1), sharing=Reduce()), Eigenbasis()),
    "ekfac": (EKFAC(MODEL, Sampled(1)), None),
    "layer_diagonal": (LayerDiagonal(MODEL, Sampled(1)), None),
    "gram": (Gram(MODEL, Sampled(1)), None),
    "dense": (Dense(MODEL, Sampled(1)), None),
}


def precisions(jaxpr, primitives=("dot_general", "conv_general_dilated")):
    """The precision of every product in a jaxpr, and in those inside it."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    for equation in jaxpr.eqns:
        if equation.primitive.name in primitives:
            yield equation.params["precision"]
        for inner in jaxprs.sub_jaxprs(equation):
            yield from precisions(inner)


@pytest.mark.parametrize("name", FORMS)
def test_no_product_of_a_step_has_default_precision(name):
    curvature, solver = FORMS[name]
    kept = ng.Refresh(inverses=2 if solver else 1)
    trust = ng.damping.TrustRegion(0.1, 0.1)
    tx = ng.scale_by_curvature(
        curvature, solver=solver, refresh=kept, trust_region=trust
    )
    state = jax.eval_shape(tx.init, PARAMS)
    step = lambda g, s, p: tx.update(g, s, p, inputs=X)
    found = list(precisions(jax.make_jaxpr(step)(PARAMS, state, PARAMS)))
    assert len(found) > 12
    assert None not in found


@pytest.mark.parametrize("name", FORMS)
def test_products_of_a_bfloat16_model_s_step_are_of_float32(name, single_precision):
    """Lowered for CUDA: all but the model's own have float32 operands, and no TF32."""
    curvature, solver = FORMS[name]
    tx = ng.scale_by_curvature(curvature, solver=solver)
    x, params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (X, PARAMS))
    state = jax.eval_shape(tx.init, params)
    step = lambda g, s, p: tx.update(g, s, p, inputs=x)
    lowered = jax.jit(step).trace(params, state, params)
    lowered = lowered.lower(lowering_platforms=("cuda",))
    products = {"stablehlo.dot_general", "stablehlo.convolution"}
    own, others = 0, 0
    for found in operations(lowered):
        if found.name not in products:
            continue
        precision = str(found.operation.attributes["precision_config"])
        if "HIGH>" in precision:
            own += 1
            continue
        others += 1
        # JAX extracts patches by kernels of zeros and ones, exact in any precision.
        exact = found.name == "stablehlo.convolution" and "DEFAULT>]" in precision
        assert precision.count("HIGHEST") == 2 - exact
        assert not [kind for kind in found.types if "bf16" in kind]
    assert own > 5
    assert others > 5


def test_the_search_finds_a_product_of_default_precision():
    inside = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)
    found = list(precisions(jax.make_jaxpr(jax.jit(inside))(PARAMS["twice"])))
    assert found == [None]


def test_factors_of_a_bfloat16_model_are_summed_in_float32():
    """A and G of a linear model from rounded data, against NumPy's sums in float64."""
    x = normal(6, 500, 8).astype(jnp.bfloat16)
    w = (normal(7, 8, 5) / 3).astype(jnp.bfloat16)
    linear = lambda w, x: x @ w
    model = ng.Model(linear, ng.families.Categorical(), example_inputs=x[:1])
    found = jax.jit(KFAC(model, ng.curvature.Empirical()).estimate)
    y = jnp.arange(500) % 5
    (a,), (g,) = found(w, x, y)
    assert a.dtype == g.dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    exact = wide.T @ wide / 500
    assert np.abs(a - exact).max() < 1e-6 * np.abs(exact).max()
    z = np.asarray(x @ w, np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    score = np.eye(5)[np.asarray(y)] - p / p.sum(1, keepdims=True)
    expected = score.T @ score / 500
    rounding = float(jnp.finfo(jnp.bfloat16).eps)
    assert np.abs(g - expected).max() < 2 * rounding * np.abs(expected).max()
