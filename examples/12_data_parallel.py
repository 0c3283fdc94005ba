"""K-FAC on as many devices as there are, in the two ways that JAX has.

    export XLA_FLAGS=--xla_force_host_platform_device_count=8  # of a CPU; or leave it
    python examples/12_data_parallel.py

Under `jax.jit` with a sharded batch the step is the one for a single device. Inside
`jax.shard_map` the curvature is told over which axis its sums run, and hands back the
gradient with the statistics, all summed in one go. Either way each device inverts its
share of the layers, and the losses are those of one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import natgrad as ng
from natgrad.curvature import KFAC, Sampled
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.transforms.distributed_inverse import DistributedInverse

SIZES = (64, 64, 32, 10)
STEPS = 40
RATE = 0.3
EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec("data")


def initial_params(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        {"w": jax.random.normal(k, (i, o)) / jnp.sqrt(i), "b": jnp.zeros(o)}
        for k, i, o in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    ]


def network(params, x):
    """Logits [N, 10] of images [N, 64]."""
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


MODEL = ng.Model(
    network, ng.families.Categorical(), example_inputs=jnp.zeros((1, SIZES[0]))
)


def transformation(curvature, mesh):
    direction = ng.scale_by_curvature(
        curvature,
        damping=1e-2,
        decay=0.95,
        solver=DistributedInverse(FactoredTikhonov(), mesh),
        refresh=ng.Refresh(inverses=10),
        trust_region=ng.damping.TrustRegion(0.1, RATE),
    )
    return optax.chain(direction, optax.scale_by_learning_rate(RATE))


def under_jit(mesh):
    """(transformation, step), written as for one device."""
    tx = transformation(KFAC(MODEL, Sampled(1)), mesh)

    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(MODEL.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return optax.apply_updates(params, updates), state, loss

    return tx, step


def under_shard_map(mesh):
    """(transformation, step), written for one device's part of the batch."""
    curvature = KFAC(MODEL, Sampled(1), axis_name="data")
    tx = transformation(curvature, mesh)

    def step(params, state, x, y):
        draw = ng.tree.next_key(state[0].key)  # the key that `update` would use
        loss, grads, statistics = curvature.value_and_grad(params, x, y, draw)
        batch = {"statistics": statistics, "inputs": x}  # x: for the trust region
        updates, state = tx.update(grads, state, params, **batch)
        return optax.apply_updates(params, updates), state, loss

    specs = (EVERYWHERE, EVERYWHERE, SPLIT, SPLIT)
    return tx, jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=EVERYWHERE)


def train(mesh, tx, step, x, y):
    # Parameters and state start where they stay, or the second step compiles anew.
    everywhere = NamedSharding(mesh, EVERYWHERE)
    params = jax.jit(initial_params, out_shardings=everywhere)(jax.random.key(0))
    state = jax.jit(tx.init, out_shardings=everywhere)(params)
    x, y = jax.device_put((x, y), NamedSharding(mesh, SPLIT))
    step, losses = jax.jit(step, donate_argnums=(0, 1)), []
    for _ in range(STEPS):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return losses


def main():
    """name -> the losses."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    images, labels = load_digits(return_X_y=True)
    count = len(images) // devices * devices
    x, y = np.float32(images[:count] / 16), labels[:count]
    found = {}
    for make in (under_jit, under_shard_map):
        found[make.__name__] = losses = train(mesh, *make(mesh), x, y)
        print(
            f"{make.__name__}, {devices} devices: {losses[0]:.4f} -> {losses[-1]:.4f}"
        )
    return found


if __name__ == "__main__":
    main()
