"""The cost of a decoder on paper against XLA's counts and the state of a small one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import natgrad as ng
from benchmarks import decoder_cost
from benchmarks.cost_model import Policy
from natgrad.curvature import KFAC, Sampled

SMALL = decoder_cost.Decoder(64, 1, 128, 96, 48, 32)


def apply(params, tokens):
    """One block of a decoder, one head of attention, and a head in pieces."""
    h = params["table"][tokens]
    q, k, v, o, up, down = params["block"]
    scores = dense(q, h) @ jnp.swapaxes(dense(k, h), 1, 2)
    seen = jnp.tril(jnp.ones((SMALL.positions,) * 2, bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    h = h + dense(o, weights @ dense(v, h))
    h = h + dense(down, jax.nn.relu(dense(up, h)))
    return jnp.concatenate([dense(piece, h) for piece in params["head"]], -1)


def dense(layer, x):
    return x @ layer["w"] + layer["b"]


@pytest.fixture
def decoder(single_precision):
    def parameters(layer):
        w = jnp.full((layer.inputs, layer.outputs), 0.1)
        return w if layer.lookup else {"w": w, "b": jnp.zeros(layer.outputs)}

    first, *rest = [parameters(layer) for layer in SMALL.layers]
    params = {"table": first, "block": rest[:6], "head": rest[6:]}
    tokens = jnp.zeros((8, SMALL.positions), jnp.int32)
    with jax.numpy_rank_promotion("allow"):
        model = ng.Model(apply, ng.families.Categorical(), example_inputs=tokens[:1])
    return model, params, tokens


@pytest.mark.parametrize("stage", ["gradient", "statistics"])
def test_a_small_decoder_costs_what_xla_counts(decoder, stage):
    model, params, tokens = decoder
    key = jax.random.PRNGKey(0)
    programs = {
        "gradient": lambda p, x: jax.grad(model.loss)(p, x, x),
        "statistics": lambda p, x: KFAC(model, Sampled(1)).estimate(p, x, None, key),
    }
    with jax.numpy_rank_promotion("allow"):
        lowered = jax.jit(programs[stage]).lower(params, tokens)
    ours = SMALL.costs(len(tokens), Policy(1, 1, 1))[stage].operations
    assert ours == pytest.approx(lowered.compile().cost_analysis()["flops"], rel=0.05)


def test_what_is_kept_is_the_state_of_kfac(decoder):
    """A diagonal for the table, and a factor for each piece of the head."""
    model, params, _ = decoder
    with jax.numpy_rank_promotion("allow"):
        held = jax.eval_shape(ng.kfac(model=model).init, params)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))
    kept = decoder_cost.state(SMALL)
    assert kept["parameters"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert sum(kept.values()) - kept["parameters"] == pytest.approx(held, rel=0.01)


def test_ratios_by_hand():
    """At s = k = 1 what is added is the other stages over the gradient."""
    sizes = SMALL, 8, 2, 2
    stages = decoder_cost.stages(*sizes)
    names = "statistics", "inverse over 2", "apply"
    first = decoder_cost.ratios(*sizes)[0]
    added = sum(stages[name].operations for name in names)
    assert first["operations"] == pytest.approx(added / stages["gradient"].operations)
    one = decoder_cost.Accelerator("", 2.0, 1.0, 4.0)
    cost = decoder_cost.Cost(operations=10.0, communicated=8.0, in_full=4.0)
    assert one.computing(cost) == 3 + 4
    assert one.sending(cost, "gradient") == 2 * one.sending(cost, "inverse") == 4


def test_a_head_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of head_width=48"):
        _ = SMALL._replace(vocabulary=97).layers


def test_the_large_decoder_has_a_billion_parameters():
    found = decoder_cost.main([])
    d, blocks, v = 2048, 16, 51200
    own = v * d + blocks * (12 * d * d + 9 * d) + v * (d + 1)
    assert found["kept"]["parameters"] == 4 * own
    assert own == pytest.approx(1e9, rel=0.02)
