"""A flax nnx CNN with BatchNorm and Dropout under nnx.Optimizer, trained by K-FAC.

The loop is nnx's own, in which the network changes in place, but for `inputs`: the
batch, and what the network's state was before the call, so that K-FAC sees the same
dropout masks. `net.curvature_model` is the network on its running statistics.

    python examples/14_nnx_cnn.py

epoch 0: loss 1.1798
...
epoch 4: loss 0.0733
accuracy 0.946
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import natgrad as ng

EPOCHS, BATCH = 5, 100


class CNN(nnx.Module):
    """Two convolutions and a dense layer."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """Logits [N, 10] of images [N, 8, 8, 1]."""
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.relu(self.conv2(x)).reshape(x.shape[0], -1)
        return self.dense(self.dropout(x))


@nnx.jit
def step(cnn, optimizer, x, y):
    state = nnx.state(nnx.clone(cnn), nnx.Not(nnx.Param))

    def loss_fn(cnn):
        return optax.softmax_cross_entropy_with_integer_labels(cnn(x), y).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(cnn)
    optimizer.update(cnn, grads, inputs={"x": x, "state": state})
    return loss


def main():
    """The losses of the steps, and the accuracy on digits not seen in training."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.float32(images / 16).reshape(-1, 8, 8, 1), jnp.asarray(labels)

    cnn = CNN(nnx.Rngs(0))
    net = ng.from_nnx(cnn, ng.families.Categorical(), x[:1])
    optimizer = nnx.Optimizer(cnn, ng.kfac(model=net.curvature_model), wrt=nnx.Param)

    rng, losses = np.random.default_rng(0), []
    cnn.train()
    for epoch in range(EPOCHS):
        for rows in rng.permutation(1200).reshape(-1, BATCH):
            losses.append(float(step(cnn, optimizer, x[rows], y[rows])))
        print(f"epoch {epoch}: loss {np.mean(losses[-1200 // BATCH :]):.4f}")
    ng.check_health(optimizer.opt_state)

    cnn.eval()
    accuracy = float(jnp.mean(jnp.argmax(cnn(x[1200:]), -1) == y[1200:]))
    print(f"accuracy {accuracy:.3f}")
    return {"losses": losses, "accuracy": accuracy}


if __name__ == "__main__":
    main()
