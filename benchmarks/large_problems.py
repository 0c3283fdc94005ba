"""Problems as large as two cores train in an hour.

    resnet20   a residual network of 20 layers with group norm, images at 32×32
    decoder    a transformer of 10.8 million parameters: which character comes next?

Sources: He et al. (2016), Deep residual learning for image recognition, section 4.2,
with shortcuts that have no parameters; Radford et al. (2019), Language models are
unsupervised multitask learners, section 2.3. Losses are means in nats, of the decoder
for each context.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from benchmarks import data
from benchmarks.drop_in.networks import (
    affine,
    convolve,
    group_norm,
    kernel,
    norm_params,
)
from benchmarks.problems import dense_layers
from benchmarks.training import CHARACTERS, LAYERED, Problem, in_contexts

STAGES, BLOCKS = (16, 32, 64), 3
EDGE = 2  # black pixels around images of 28×28
CONTEXT, WIDTH, LAYERS, HEADS = 64, 384, 6, 6


def resnet20(batch: int = 32) -> Problem:
    found = data.images()
    x = found.x.reshape(-1, data.SIDE, data.SIDE, 1)
    x = jnp.asarray(np.pad(x, ((0, 0), (EDGE, EDGE), (EDGE, EDGE), (0, 0))))
    model = ng.Model(resnet, ng.families.Categorical(), example_inputs=x[:1])
    y, about = jnp.asarray(found.y), f"{found.name}, at 32×32"
    return Problem(model, resnet_layers, x, y, batch, model.loss, LAYERED, about)


def resnet_layers(seed: int, stages=STAGES, blocks: int = BLOCKS):
    """Parameters; `stages` are the numbers of channels, multiples of 4."""
    draws = iter(range(1000 * seed, 1000 * (seed + 1)))

    def normalised(inputs, outputs):
        return kernel(next(draws), 3, inputs, outputs) | norm_params(outputs)

    widths = [width for width in stages for _ in range(blocks)]
    return {
        "stem": normalised(1, stages[0]),
        "blocks": [
            {"first": normalised(inputs, width), "second": normalised(width, width)}
            for inputs, width in zip([stages[0], *widths], widths, strict=False)
        ],
        "head": dense_layers([stages[-1], 10], seed)[0],
    }


def resnet(params, x):
    """Logits [N, 10] of images [N, H, W, 1]."""

    def layer(p, x, stride=1):
        return group_norm(p, convolve(p, x, stride))

    x = jax.nn.relu(layer(params["stem"], x))
    for p in params["blocks"]:
        more = p["first"]["w"].shape[-1] - x.shape[-1]  # channels; then half the size
        stride = 2 if more else 1
        inside = jax.nn.relu(layer(p["first"], x, stride))
        same = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, more)))
        x = jax.nn.relu(same + layer(p["second"], inside))
    return affine(params["head"], jnp.mean(x, axis=(1, 2)))


def decoder(batch: int = 16, characters: int = 1_000_000) -> Problem:
    x, y = in_contexts(data.library_text(characters), CONTEXT)
    model = ng.Model(language, ng.families.Categorical(), example_inputs=x[:1])
    about = "characters of Python's library, contexts of 64; loss per context"
    return Problem(model, language_layers, x, y, batch, model.loss, LAYERED, about)


def language_layers(seed: int, width: int = WIDTH, layers: int = LAYERS):
    """Parameters; what is added to the stream starts smaller, by 1/√(2 layers)."""
    sizes = {
        "qkv": [width, 3 * width],
        "out": [width, width],
        "up": [width, 4 * width],
        "down": [4 * width, width],
    }
    draws = iter(range(1000 * seed, 1000 * (seed + 1)))

    def block():
        found = {name: dense_layers(s, next(draws))[0] for name, s in sizes.items()}
        for name in ("out", "down"):
            found[name]["w"] /= np.sqrt(2 * layers).astype(np.float32)
        norms = {name: norm_params(width) for name in ("before", "between")}
        return found | norms

    def table(rows, scale):
        draw = np.random.default_rng(next(draws)).normal(size=(rows, width))
        return jnp.asarray(scale * draw, jnp.float32)

    return {
        "characters": table(CHARACTERS, 1.0),
        "places": table(CONTEXT, 0.1),
        "layers": [block() for _ in range(layers)],
        "norm": norm_params(width),
        "head": dense_layers([width, CHARACTERS], next(draws))[0],
    }


def language(params, codes):
    """Logits [N, T, 128] of the next character; six heads that see the past alone."""
    x = params["characters"][codes] + params["places"]
    for p in params["layers"]:
        x = x + causal_attention(p, layer_norm(p["before"], x))
        hidden = jax.nn.gelu(affine(p["up"], layer_norm(p["between"], x)))
        x = x + affine(p["down"], hidden)
    return affine(params["head"], layer_norm(params["norm"], x))


def layer_norm(p, x):
    return jax.nn.standardize(x) * p["scale"] + p["shift"]


def causal_attention(p, x):
    """Mixes the places of x [N, T, D] with those before them."""
    split = lambda t: t.reshape(*t.shape[:2], HEADS, -1).swapaxes(1, 2)
    q, k, v = (split(t) for t in jnp.split(affine(p["qkv"], x), 3, axis=-1))
    past = np.tril(np.ones((x.shape[1], x.shape[1]), bool))[None, None]
    scores = q @ k.mT / np.sqrt(q.shape[-1]).astype(np.float32)
    mixed = jax.nn.softmax(jnp.where(past, scores, -1e9)) @ v
    return affine(p["out"], mixed.swapaxes(1, 2).reshape(x.shape))


PROBLEMS = {"resnet20": resnet20, "decoder": decoder}
