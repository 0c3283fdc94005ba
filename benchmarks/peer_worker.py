"""Trains with other libraries, in an environment of their own; `benchmarks.peers` asks.

Neither natgrad nor the other benchmarks are there: this file needs jax, numpy and what
it races. It reads requests from standard input, a line of JSON each, and answers each
with a line:

    {"do": "versions"}                                     {"jax": "0.9.1", ...}
    {"do": "problem", "data": FILE.npz}                    {}
    {"do": "start", "name": NAME, "params": FILE.npz}      {"loss": ...}
    {"do": "turn", "name": NAME, "picks": [[0, 7], ...]}   {"wall", "cpu", "loss"}

Data: `x` [N, I], `y` [N, O] bits or [N] classes, `code`, the layer without tanh beside
the last (−1 for none), `evaluated`, how many examples the loss is of. Parameters: w0,
b0, w1, b1 ...
"""

from __future__ import annotations

import json
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np

BURN_IN = 10


class Dense:
    """A dense network with tanh units and its loss in nats."""

    def __init__(self, file):
        with np.load(file) as data:
            self.x, self.y = jnp.asarray(data["x"]), jnp.asarray(data["y"])
            self.code, self.evaluated = int(data["code"]), int(data["evaluated"])
        self.bits = self.y.ndim > 1
        self.measured = jax.jit(lambda params, batch: self.value(params, *batch))

    def apply(self, params, x):
        """Logits [N, O]."""
        for i, p in enumerate(params):
            x = x @ p["w"] + p["b"]
            x = x if i in (self.code, len(params) - 1) else jnp.tanh(x)
        return x

    def of_logits(self, z, y):
        """The mean loss."""
        if self.bits:
            return jnp.mean(jnp.sum(jax.nn.softplus(z) - y * z, axis=-1))
        log_p = jax.nn.log_softmax(z)
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=-1))

    def value(self, params, x, y):
        """The mean loss of examples."""
        return self.of_logits(self.apply(params, x), y)

    def registered(self, params, batch):
        """The same, registered with kfac-jax."""
        x, y = batch
        z = self.apply(params, x)
        if self.bits:
            kfac_jax.register_multi_bernoulli_predictive_distribution(z, y)
        else:
            kfac_jax.register_categorical_predictive_distribution(z, y)
        return self.of_logits(z, y)

    def drawn(self, count):
        """Batches for statistics, 256 examples each."""
        random = np.random.default_rng(1)
        for _ in range(count):
            pick = random.choice(len(self.x), 256)
            yield self.x[pick], self.y[pick]

    def loss(self, params):
        """Of the first examples."""
        some = self.x[: self.evaluated], self.y[: self.evaluated]
        return float(self.measured(params, some))


class KfacJax:
    """kfac-jax; `fixed` is what its step is told, `made` what it is made with.

    Burning in, as is its habit: ten batches of statistics before the first step.
    """

    def __init__(self, problem, made, fixed, burns_in):
        self.problem, self.fixed, self.burns_in = problem, fixed, burns_in
        self.optimizer = kfac_jax.Optimizer(
            jax.value_and_grad(problem.registered),
            l2_reg=0.0,
            inverse_update_period=5,
            num_burnin_steps=BURN_IN if burns_in else 0,
            **made,
        )

    def init(self, params, key, batch):
        """Its state."""
        return self.optimizer.init(params, key, batch)

    def step(self, params, state, key, batch, number):
        """New parameters and state."""
        before = self.problem.drawn(BURN_IN) if number == 0 and self.burns_in else ()
        params, state, _ = self.optimizer.step(
            params,
            state,
            key,
            data_iterator=iter((*before, batch)),
            global_step_int=number,
            **self.fixed,
        )
        return params, state


def fixed(problem):
    given = {"learning_rate": 0.03, "momentum": 0.9, "damping": 1e-2}
    # natgrad's trust region, ½ η² ⟨d, F d⟩ <= 0.1, in kfac-jax's terms.
    return KfacJax(problem, {"norm_constraint": 0.2}, given, burns_in=False)


def adaptive(problem):
    made = {
        "use_adaptive_learning_rate": True,
        "use_adaptive_momentum": True,
        "use_adaptive_damping": True,
        "initial_damping": 15.0,
        "min_damping": 1e-6,
    }
    return KfacJax(problem, made, {}, burns_in=True)


class Somax:
    """Somax's Gauss-Newton for cross-entropy: at most 20 iterations of CG."""

    def __init__(self, problem):
        import somax

        if problem.bits:
            raise ValueError("Somax has no preset for Bernoulli outputs.")
        method = somax.sgn_ce(
            predict_fn=problem.apply,
            lam0=1e-2,
            tol=1e-4,
            maxiter=20,
            learning_rate=0.1,
        )
        self.method, self.program = method, None
        self.one = lambda params, state, key, x, y: method.step(
            params, {"x": x, "y": y}, state, key
        )[:2]

    def init(self, params, key, batch):
        """Its state; compiles its step."""
        state = self.method.init(params)
        if self.program is None:
            whole = jax.jit(self.one).lower(params, state, key, *batch)
            self.program = whole.compile()
        return state

    def step(self, params, state, key, batch, number):
        """New parameters and state."""
        del number
        return self.program(params, state, key, *batch)


MAKERS = {"kfac-jax": fixed, "kfac-jax adaptive": adaptive, "somax": Somax}


def main() -> None:
    problem, optimizers, carries = None, {}, {}
    for line in sys.stdin:
        asked = json.loads(line)
        name, answer = asked.get("name"), {}
        if asked["do"] == "versions":
            for package in ("jax", "jaxlib", "kfac-jax", "python-somax"):
                try:
                    answer[package] = metadata.version(package)
                except metadata.PackageNotFoundError:
                    answer[package] = None
        elif asked["do"] == "problem":
            problem, optimizers = Dense(asked["data"]), {}
        elif asked["do"] == "start":
            answer, carries[name] = started(problem, optimizers, name, asked["params"])
        else:
            answer, carries[name] = turned(
                problem, optimizers[name], carries[name], asked["picks"]
            )
        print(json.dumps(answer), flush=True)


def started(problem, optimizers, name, file):
    with np.load(file) as stored:
        params = [
            {"w": jnp.asarray(stored[f"w{i}"]), "b": jnp.asarray(stored[f"b{i}"])}
            for i in range(len(stored.files) // 2)
        ]
    if name not in optimizers:
        optimizers[name] = MAKERS[name](problem)
    key, loss = jax.random.PRNGKey(0), problem.loss(params)
    return {"loss": loss}, (params, None, key, 0)


def turned(problem, optimizer, carry, picks):
    params, state, key, number = carry
    picks = [np.asarray(pick) for pick in picks]
    batches = [(problem.x[pick], problem.y[pick]) for pick in picks]
    jax.block_until_ready((params, batches))
    if state is None:
        # kfac-jax compiles in its first step: run it on a copy, outside the clock.
        state = optimizer.init(params, key, batches[0])
        copy = jax.tree.map(jnp.copy, (params, state))
        jax.block_until_ready(optimizer.step(*copy, key, batches[0], 0))
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        key, draw = jax.random.split(key)
        params, state = optimizer.step(params, state, draw, batch, number)
        number += 1
    jax.block_until_ready((params, state))
    answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return answer | {"loss": problem.loss(params)}, (params, state, key, number)


if __name__ == "__main__":
    main()
