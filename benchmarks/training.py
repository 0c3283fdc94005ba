"""Problems to train on: a model, data, a loss, where to start.

    autoencoder   784-1000-500-250-30 and back, images of digits as bits
    curves        784-400-200-100-50-25-6 and back, generated curves as bits
    classifier    784-512-512-10, images of digits
    cnn           two strided convolutions and a dense layer, images of digits
    transformer   two blocks on characters of Python's own library: which comes next?
    linear        least squares on the wines, from zero, raw features, in float64
    logistic      breast cancer, from zero, raw features, in float64
    pinn          Poisson's equation of examples/08_pinn.py, in float64
    vmc           the ten spins of examples/09_variational_monte_carlo.py, in float64

The first two are those of Hinton & Salakhutdinov (2006) and Martens & Grosse (2015),
with tanh units and a linear code; linear and logistic are of Kunstner, Hennig & Balles
(2019). Losses are means in nats, but for pinn (half the weighted mean of the squared
residuals) and vmc (the energy). The last four take all examples in every step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from benchmarks import data
from benchmarks.problems import cnn as cnn_model
from benchmarks.problems import dense_apply, dense_layers

OF_IMAGES = ("autoencoder", "classifier", "cnn")  # these take a file of images
EXAMPLES = Path(__file__).parent.parent / "examples"
ANYWHERE = ("adam", "adamw", "schedule_free", "muon", "sophia", "soap", "kl_shampoo")
ANYWHERE += ("lbfgs",)
LAYERED = (*ANYWHERE, "kfac", "ekfac", "kfac_adaptive")
SMALL = (*ANYWHERE, "natural_gradient", "gram")
CODE_WIDTH, CONTEXT, WIDTH, CHARACTERS = 30, 32, 64, 128


Pick = np.ndarray | None  # which examples; None for all


class Problem(NamedTuple):
    """What is trained.

    Attributes:
        model: the statistical model, for curvatures.
        initial: seed -> parameters.
        x, y: all inputs and targets, leading axis N.
        batch: examples a step; None for all.
        loss: (params, inputs, targets) -> what is minimised.
        inputs: (params, inputs) -> inputs of the model, where they depend on both.
        optimizers: names in `benchmarks.optimizers` that can train it.
        x64: in double precision?
        about: the data, in words.
        held: inputs and targets that nothing is trained on; None where there are none.
    """

    model: ng.Model
    initial: Callable[[int], Any]
    x: Any
    y: Any
    batch: int | None
    loss: Callable[[Any, Any, Any], jax.Array]
    optimizers: tuple[str, ...]
    about: str
    inputs: Callable[[Any, Any], Any] = lambda _, x: x
    x64: bool = False
    held: tuple[Any, Any] | None = None

    def picks(self, seed: int) -> Iterator[Pick]:
        """Batches without end, the same for the same seed."""
        random, count = np.random.default_rng(seed), len(self.y)
        while True:
            if self.batch is None:
                yield None
            else:
                yield random.choice(count, min(self.batch, count), replace=False)

    def examples(self, pick: Pick) -> tuple[Any, Any]:
        """Inputs and targets of a batch."""
        if pick is None:
            return self.x, self.y
        return jax.tree.map(lambda leaf: leaf[pick], (self.x, self.y))


def autoencoder(path: Path | None = None, batch: int = 256) -> Problem:
    found = data.images(path)
    half = [data.PIXELS, 1000, 500, 250, CODE_WIDTH]
    return encoding(found.x, half, batch, found.name)


def curves(batch: int = 256) -> Problem:
    half = [data.PIXELS, 400, 200, 100, 50, 25, 6]
    return encoding(data.curves(), half, batch, "generated curves, 5,000")


def encoding(images, half: list[int], batch: int, about: str) -> Problem:
    """An autoencoder of pixels above a half."""
    bits = images > 0.5
    x, y = jnp.asarray(bits, jnp.float32), jnp.asarray(bits, jnp.int32)
    code = len(half) - 2  # the layer whose output is the code

    def apply(params, x):
        for i, p in enumerate(params):
            x = x @ p["w"] + p["b"]
            x = x if i in (code, len(params) - 1) else jnp.tanh(x)
        return x

    model = ng.Model(apply, ng.families.Bernoulli(), example_inputs=x[:1])
    start = lambda seed: dense_layers(half + half[-2::-1], seed)
    return Problem(model, start, x, y, batch, model.loss, LAYERED, about)


def classifier(path: Path | None = None, batch: int = 256) -> Problem:
    found = data.images(path)
    x, y = jnp.asarray(found.x), jnp.asarray(found.y)
    model = ng.Model(dense_apply, ng.families.Categorical(), example_inputs=x[:1])
    start = lambda seed: dense_layers([data.PIXELS, 512, 512, 10], seed)
    return Problem(model, start, x, y, batch, model.loss, LAYERED, found.name)


def cnn(path: Path | None = None, batch: int = 64) -> Problem:
    found = data.images(path)
    x = jnp.asarray(found.x).reshape(-1, data.SIDE, data.SIDE, 1)
    model, shapes, _, _ = cnn_model(1)
    model = ng.Model(model.apply, model.family, example_inputs=x[:1])

    def start(seed):
        draw = np.random.default_rng(seed)
        scaled = lambda s: draw.normal(size=s) / np.sqrt(np.prod(s[:-1]))
        convolutions = [
            jnp.asarray(scaled(w.shape), jnp.float32) for w in shapes["conv"]
        ]
        return {"conv": convolutions, "dense": dense_layers([7 * 7 * 32, 10], seed)}

    y = jnp.asarray(found.y)
    return Problem(model, start, x, y, batch, model.loss, LAYERED, found.name)


def transformer(batch: int = 32, characters: int = 400_000) -> Problem:
    x, y = in_contexts(data.library_text(characters), CONTEXT)
    model = ng.Model(language, ng.families.Categorical(), example_inputs=x[:1])
    about = "characters of Python's library, contexts of 32; loss per context"
    return Problem(model, language_layers, x, y, batch, model.loss, LAYERED, about)


def in_contexts(codes, length: int):
    """Contexts [N, length] of a text, and the characters that come next."""
    count = (len(codes) - 1) // length
    at = lambda start: jnp.asarray(codes[start:][: count * length])
    return at(0).reshape(count, length), at(1).reshape(count, length)


def language_layers(seed: int, width: int = WIDTH):
    sizes = {
        "qkv": [width, 3 * width],
        "out": [width, width],
        "up": [width, 4 * width],
        "down": [4 * width, width],
    }
    start = 1000 * seed
    layers = [
        {n: dense_layers(s, start + 10 * i + j)[0] for j, (n, s) in enumerate(both)}
        for i, both in enumerate([sizes.items()] * 2)
    ]
    draw = np.random.default_rng(seed)
    table = lambda rows: jnp.asarray(draw.normal(size=(rows, width)), jnp.float32)
    return {
        "characters": table(CHARACTERS),
        "places": 0.1 * table(CONTEXT),
        "layers": layers,
        "head": dense_layers([width, CHARACTERS], start + 100)[0],
    }


def language(params, codes):
    """Logits of the next character [N, T, 128]; one-headed attention to the past."""
    affine = lambda p, x: x @ p["w"] + p["b"]
    past = np.tril(np.ones((CONTEXT, CONTEXT), bool))[None]
    x = params["characters"][codes] + params["places"]
    for p in params["layers"]:
        q, k, v = jnp.split(affine(p["qkv"], jax.nn.standardize(x)), 3, axis=-1)
        scale = np.sqrt(q.shape[-1]).astype(np.float32)
        scores = jnp.where(past, q @ k.mT / scale, -1e9)
        x = x + affine(p["out"], jax.nn.softmax(scores) @ v)
        hidden = jax.nn.gelu(affine(p["up"], jax.nn.standardize(x)))
        x = x + affine(p["down"], hidden)
    return affine(params["head"], jax.nn.standardize(x))


def linear() -> Problem:
    x, y = data.regression("wine")
    return from_zero(x, y, ng.families.NormalMean(), "scikit-learn's wines")


def logistic() -> Problem:
    x, y = data.regression("breast cancer")
    return from_zero(x, y, ng.families.Bernoulli(), "scikit-learn's breast cancer")


def from_zero(x, y, family, about: str) -> Problem:
    with jax.enable_x64(True):
        x, y = jnp.asarray(x, jnp.float64), jnp.asarray(y)[:, None]
    model = ng.Model(lambda p, x: x @ p["w"], family, example_inputs=x[:1])
    start = lambda _: {"w": jnp.zeros((x.shape[1], 1), jnp.float64)}
    loss = model.loss
    return Problem(model, start, x, y, None, loss, SMALL, about, x64=True)


def pinn() -> Problem:
    example = loaded("08_pinn")
    with jax.enable_x64(True):
        points = example.collocation()
        loss = lambda params, x, _: example.half_mean_square(params, x)
        start = lambda seed: example.initial_params(jax.random.key(seed))
        targets = jnp.zeros(len(points["x"]))
    return Problem(
        example.model,
        start,
        points,
        targets,
        None,
        loss,
        SMALL,
        "900 interior and 116 boundary points",
        x64=True,
    )


def vmc() -> Problem:
    example = loaded("09_variational_monte_carlo")
    with jax.enable_x64(True):
        spins = example.configurations(example.SMALL)

    def weighted(params, s):
        weight = jax.nn.softmax(2 * example.log_amplitude(params, s))
        return {"s": s, "weight": weight}

    def energy(params, s, _):
        return weighted(params, s)["weight"] @ example.local_energies(params, s)

    start = lambda seed: example.initial_params(jax.random.key(seed), example.SMALL)
    return Problem(
        example.model,
        start,
        spins,
        spins[:, 0],
        None,
        energy,
        (*ANYWHERE, "stochastic_reconfiguration"),
        "all 1,024 configurations of ten spins",
        inputs=weighted,
        x64=True,
    )


def loaded(name: str):
    """The example as a module; the precision stays what it was."""
    before = jax.config.jax_enable_x64
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    jax.config.update("jax_enable_x64", before)
    return module


PROBLEMS = {
    "autoencoder": autoencoder,
    "curves": curves,
    "classifier": classifier,
    "cnn": cnn,
    "transformer": transformer,
    "linear": linear,
    "logistic": logistic,
    "pinn": pinn,
    "vmc": vmc,
}
