"""A haiku network with dropout and running statistics, trained by K-FAC.

A transformed haiku function is a function of parameters, state, key and inputs, so it
needs no adapter. The loss calls it as haiku users do, and the `Model` that K-FAC reads
with the same dropout masks, but with BatchNorm on stored statistics.

    python examples/17_haiku.py

epoch 0: loss 1.2397
...
epoch 5: loss 0.0669
accuracy 0.925
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import natgrad as ng

EPOCHS, BATCH = 6, 100


def network(x, training, normalise_by_batch):
    """Logits [N, 10] of images [N, 64]."""
    x = hk.Linear(32)(x)
    norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
    x = jax.nn.relu(norm(x, is_training=normalise_by_batch))
    if training:
        x = hk.dropout(hk.next_rng_key(), 0.1, x)
    return hk.Linear(10)(x)


def main():
    """The losses of the steps, and the accuracy on digits not seen in training."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.float32(images / 16), jnp.asarray(labels)

    net = hk.transform_with_state(network)
    params, state = net.init(jax.random.key(0), x[:BATCH], True, True)

    def with_stored_statistics(params, inputs):
        z, _ = net.apply(
            params, inputs["state"], inputs["key"], inputs["x"], True, False
        )
        return z

    model = ng.Model(
        with_stored_statistics,
        ng.families.Categorical(),
        {"x": x[:1], "key": jax.random.key(0), "state": state},
        in_axes={"x": 0, "key": None, "state": None},
    )
    tx = ng.kfac(model=model)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, state, opt_state, x, y, key):
        def loss_fn(params):
            z, after = net.apply(params, state, key, x, True, True)
            loss = optax.softmax_cross_entropy_with_integer_labels(z, y).mean()
            return loss, after

        (loss, after), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        inputs = {"x": x, "key": key, "state": after}
        updates, opt_state = tx.update(grads, opt_state, params, inputs=inputs)
        return optax.apply_updates(params, updates), after, opt_state, loss

    rng, key, losses = np.random.default_rng(0), jax.random.key(1), []
    for epoch in range(EPOCHS):
        for rows in rng.permutation(1200).reshape(-1, BATCH):
            key, now = jax.random.split(key)
            params, state, opt_state, loss = step(
                params, state, opt_state, x[rows], y[rows], now
            )
            losses.append(float(loss))
        print(f"epoch {epoch}: loss {np.mean(losses[-1200 // BATCH :]):.4f}")
    ng.check_health(opt_state)

    z, _ = net.apply(params, state, None, x[1200:], False, False)
    accuracy = float(jnp.mean(jnp.argmax(z, -1) == y[1200:]))
    print(f"accuracy {accuracy:.3f}")
    return {"losses": losses, "accuracy": accuracy}


if __name__ == "__main__":
    main()
