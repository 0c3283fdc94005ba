"""The columns of the table of `test_optax_contract`: what optax does with a row.

A column is a function of a row, parameters and extra arguments; it gives the update of
the bare transformation, `one`, or of a part of the parameters, `part`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from contract import MODEL, X, Y, describe, gradient_of
from optax_rows import LAYERWISE, RATE, of_batch

import natgrad as ng

HALF = {"w": True, "b": False}


def one(tx, params, extra):
    """One update with the gradient at the parameters; the state keeps its structure."""
    state = tx.init(params)
    updates, after = tx.update(gradient_of(params), state, params, **extra)
    assert describe(after) == describe(state)
    return updates


def transparent(row, params, extra):
    """Wrappers that change nothing, one around the other, and an unknown argument."""
    scheduled = row.injected(learning_rate=optax.constant_schedule(RATE))
    groups = {"some": optax.masked(scheduled, True), "nobody": row.tx()}
    wrapped = optax.apply_if_finite(
        optax.named_chain(
            ("ours", optax.partition(groups, "some")), ("after", optax.identity())
        ),
        max_consecutive_errors=2,
    )
    wrapped = optax.with_extra_args_support(wrapped)
    return one(wrapped, params, extra | {"unknown": 1.0})


def accumulated(row, params, extra):
    """The mean of two gradients, with the arguments that come with the second."""
    tx = optax.MultiSteps(row.tx(), every_k_schedule=2)

    def micro_step(state, scale):
        grads = jax.tree.map(lambda g: scale * g, gradient_of(params))
        updates, after = tx.update(grads, state, params, **extra)
        assert describe(after) == describe(state)
        return after, updates

    updates = jax.lax.scan(micro_step, tx.init(params), jnp.array([0.5, 1.5]))[1]
    return jax.tree.map(lambda both: jnp.where(both[0] == 0, both[1], jnp.nan), updates)


def looked_ahead(row, params, extra):
    """The fast step; no extra argument gets through, so the batch is observed."""
    tx = optax.lookahead(row.tx(), sync_period=2, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(params)
    state = tx.init(pair)
    if extra:
        state = ng.observe(tx, state, pair, inputs=X, targets=Y)
    return tx.update(gradient_of(params), state, pair)[0].fast


def schedule_free(row, params, extra):
    """The step of z, the sequence that the bare transformation moves."""
    tx = optax.contrib.schedule_free(row.tx(), RATE)
    before = tx.init(params)
    _, after = tx.update(gradient_of(params), before, params, **extra)
    assert describe(after) == describe(before)
    return jax.tree.map(jnp.subtract, after.z, before.z)


def searched(search):
    """A line search after it, along the same line: the length is put back."""

    def of(row, params, extra):
        down = -1.0 if row.make is ng.scale_by_dual else 1.0
        tx = optax.chain(row.tx(), optax.scale(down), search(3))
        extra = of_batch(params, ("value", "value_fn", "grad")) | extra
        found, _ = tx.update(gradient_of(params), tx.init(params), params, **extra)
        length = optax.tree.norm(one(row.tx(), params, extra)) / optax.tree.norm(found)
        return jax.tree.map(lambda u: down * length * u, found)

    return of


def masked(row, params, extra):
    """A part of the parameters; `kfac` has to know the others when it is made."""
    layerwise = row.make.__name__ in LAYERWISE
    tx = row.tx(MODEL.with_frozen(params) if layerwise else MODEL)
    return one(optax.masked(tx, HALF), params, extra | {"model_params": params})


def part(row, params):
    """The update of a model that has these parameters alone, beside the gradient."""
    mine, grads = {"w": params["w"]}, gradient_of(params)
    model = ng.Model(
        lambda p, x: MODEL.apply(p | {"b": params["b"]}, x),
        MODEL.family,
        example_inputs=X[:1],
    )
    tx, extra = row.tx(model), of_batch(mine, row.needs, model)
    updates, _ = tx.update({"w": grads["w"]}, tx.init(mine), mine, **extra)
    return updates | {"b": grads["b"]}


COLUMNS = {
    "transparent": transparent,
    "accumulated": accumulated,
    "looked_ahead": looked_ahead,
    "schedule_free": schedule_free,
    "masked": masked,
}
# A line search sees the update alone, whoever made it.
SEARCHES = {
    "backtracking": searched(optax.scale_by_backtracking_linesearch),
    "zoom": searched(optax.scale_by_zoom_linesearch),
}
SEARCHED = "natural_gradient", "ivon", "scale_by_dual"
# Their states are those of other rows, and a wrapper that decides when they are called,
# and of what, sees no more of them.
KIN = {
    "diagonal_fisher",
    "dual_mirror_descent",
    "ekfac",
    "gram",
    "gram_blocks",
    "kl_shampoo",
    "march",
    "matrix_free",
    "scale_by_curvature",
    "scale_by_march",
    "scale_by_spring",
}


def columns_of(name):
    """name -> the column, for a row."""
    if name in KIN:
        return {c: COLUMNS[c] for c in ("transparent", "looked_ahead", "masked")}
    return COLUMNS | (SEARCHES if name in SEARCHED else {})
