"""K-FAC on a transformer whose heads and hidden units lie on different devices.

Batches are split over the axis "data" of a mesh of 2 × 4 devices, weights over "model".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import natgrad as ng

WORDS, LENGTH, WIDTH, HEADS, HIDDEN, N, STEPS = 8, 4, 16, 4, 32, 8, 3
COLUMNS, ROWS = PartitionSpec(None, "model"), PartitionSpec("model")
EVERYWHERE = PartitionSpec()
# name -> (shape, the axes of the mesh that its axes are split over)
WEIGHTS = {
    "embedding": ((WORDS, WIDTH), EVERYWHERE),
    "q": ((WIDTH, HEADS, WIDTH // HEADS), COLUMNS),
    "k": ((WIDTH, HEADS, WIDTH // HEADS), COLUMNS),
    "v": ((WIDTH, HEADS, WIDTH // HEADS), COLUMNS),
    "o": ((HEADS, WIDTH // HEADS, WIDTH), ROWS),
    "up": ((WIDTH, HIDDEN), COLUMNS),
    "down": ((HIDDEN, WIDTH), ROWS),
    "out": ((WIDTH, WORDS), EVERYWHERE),
}


def norm(h):
    return h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6)


def transformer(p, x):
    """One block; logits [N, LENGTH, WORDS] of the next word."""
    h = p["embedding"][x]
    q, k, v = (jnp.einsum("ntd,dhk->nhtk", norm(h), p[name]) for name in "qkv")
    past = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))[None, None]
    seen = jnp.where(past, jnp.einsum("nhtk,nhsk->nhts", q, k), -1e9)
    heads = jnp.einsum("nhts,nhsk->nhtk", jax.nn.softmax(seen), v)
    h = h + jnp.einsum("nhtk,hkd->ntd", heads, p["o"])
    return norm(h + jax.nn.gelu(norm(h) @ p["up"]) @ p["down"]) @ p["out"]


def held(tree):
    """Bytes of a tree on the first device."""
    first = jax.devices()[0]
    parts = [part for leaf in jax.tree.leaves(tree) for part in leaf.addressable_shards]
    return sum(part.data.nbytes for part in parts if part.device == first)


def hybrid(_):
    """Steps on 2 × 4 devices beside those on one, and what a device holds.

    `state` is bytes of the state on a device over all of it, `arguments` the same of
    all that the compiled step is given, `factors` the parts that the largest factor of
    the hidden units and its inverse are cut into, `moved` leaves of the state that do
    not lie where they lay; does the momentum lie `beside` the weights?
    """
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) / 4 for name, (shape, _) in WEIGHTS.items()}
    x, y = rng.integers(0, WORDS, (2, N, LENGTH))
    model = ng.Model(transformer, ng.families.Categorical(), example_inputs=x[:1])
    tx = ng.kfac(0.1, model, momentum=0.9, refresh=ng.Refresh(inverses=2))

    def step(params, state, x, y):
        grads = jax.grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return optax.apply_updates(params, updates), state

    def trained(program, params, state, x, y):
        for _ in range(STEPS):
            params, state = program(params, state, x, y)
        return params, state

    expected, _ = trained(jax.jit(step), start, tx.init(start), x, y)

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    places = {name: NamedSharding(mesh, spec) for name, (_, spec) in WEIGHTS.items()}
    params = jax.device_put(start, places)
    kept = ng.spread.Devices(mesh, "model").shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=kept)(params)
    x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data")))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    given = whole + sum(leaf.nbytes for leaf in jax.tree.leaves((params, x, y)))
    program = jax.jit(step, out_shardings=(places, kept))
    program = program.lower(params, state, x, y).compile()
    params, state = trained(program, params, state, x, y)

    gap = lambda a, b: max(np.max(np.abs(np.asarray(a[k]) - b[k])) for k in start)
    flat = zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True)
    momentum = optax.tree.get(state, "velocity")
    matrices = [a for a in jax.tree.leaves(state) if a.shape == (HIDDEN, HIDDEN)]
    return {
        "difference": gap(params, expected) / gap(expected, start),
        "state": held(state) / whole,
        "arguments": program.memory_analysis().argument_size_in_bytes / given,
        "factors": [a.size // a.addressable_shards[0].data.size for a in matrices],
        "beside": all(
            momentum[k].sharding.is_equivalent_to(place, momentum[k].ndim)
            for k, place in places.items()
        ),
        "moved": sum(
            not a.sharding.is_equivalent_to(place, a.ndim) for a, place in flat
        ),
    }
