"""Trains with kfac-jax, in an environment of its own; `benchmarks.peers` asks.

Neither natgrad nor the other benchmarks are there: this file needs jax, numpy and
kfac-jax. It reads requests from standard input, a line of JSON each, and answers each
with a line:

    {"do": "problem", "data": FILE.npz}                    {}
    {"do": "start", "name", "setting", "params": FILE.npz} {"losses": [...]}
    {"do": "turn", "name": NAME, "picks": [[0, 7], ...]}   {"wall", "cpu", "losses"}

Losses are those of training and of held-out examples. The first answer to "turn" has
"compile" too, CPU seconds. Data: `x` [N, I], `y` [N, O] bits or [N] classes, `hx` and
`hy` held out, `linear`, the layer without tanh beside the last (−1 for none),
`evaluated`, how many examples the losses are of. Parameters: w0, b0, w1, b1 ...
"""

from __future__ import annotations

import json
import sys
import time

import jax
import jax.numpy as jnp
import kfac_jax
import numpy as np

# natgrad's trust region, ½ η² ⟨d, F d⟩ <= 0.01, in kfac-jax's terms.
CONSTRAINT = 0.02


class Dense:
    """A dense network with tanh units and its losses in nats."""

    def __init__(self, file):
        with np.load(file) as data:
            self.x, self.y = jnp.asarray(data["x"]), jnp.asarray(data["y"])
            count, self.linear = int(data["evaluated"]), int(data["linear"])
            held = jnp.asarray(data["hx"][:count]), jnp.asarray(data["hy"][:count])
        self.measured = (self.x[:count], self.y[:count]), held
        self.bits = self.y.ndim > 1
        self.program = jax.jit(
            lambda params, sets: [self.value(params, *batch) for batch in sets]
        )

    def apply(self, params, x):
        """Logits [N, O]."""
        for i, p in enumerate(params):
            x = x @ p["w"] + p["b"]
            x = x if i in (self.linear, len(params) - 1) else jnp.tanh(x)
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

    def drawn(self, count, size):
        """Batches for statistics."""
        random = np.random.default_rng(1)
        for _ in range(count):
            pick = random.choice(len(self.x), size)
            yield self.x[pick], self.y[pick]

    def losses(self, params):
        """Of the first training and held-out examples."""
        return [float(loss) for loss in self.program(params, self.measured)]


class Fixed:
    """kfac-jax with a fixed learning rate, momentum and damping.

    Its inverses are renewed every five steps.
    """

    burn_in = 0

    def __init__(self, problem, **more):
        self.problem = problem
        self.optimizer = kfac_jax.Optimizer(
            jax.value_and_grad(problem.registered),
            l2_reg=0.0,
            inverse_update_period=5,
            num_burnin_steps=self.burn_in,
            **(more or {"norm_constraint": CONSTRAINT}),
        )

    def init(self, params, key, batch, setting):
        """Its state."""
        del setting
        return self.optimizer.init(params, key, batch)

    def arguments(self, setting):
        """What each step is told."""
        return {"learning_rate": setting, "momentum": 0.9, "damping": 1e-3}

    def step(self, params, state, key, batch, number, setting):
        """New parameters and state."""
        before = () if number else self.problem.drawn(self.burn_in, len(batch[0]))
        params, state, _ = self.optimizer.step(
            params,
            state,
            key,
            data_iterator=iter((*before, batch)),
            global_step_int=number,
            **self.arguments(setting),
        )
        return params, state


class Adaptive(Fixed):
    """kfac-jax that adapts rate, momentum and damping, from a damping on.

    Burning in, as is its habit: ten batches of statistics before the first step.
    """

    burn_in = 10

    def __init__(self, problem):
        super().__init__(
            problem,
            use_adaptive_learning_rate=True,
            use_adaptive_momentum=True,
            use_adaptive_damping=True,
            initial_damping=15.0,
            min_damping=1e-6,
        )

    def init(self, params, key, batch, setting):
        """Its state, with the damping to begin with."""
        state = super().init(params, key, batch, setting)
        state.damping = jnp.full_like(state.damping, setting)
        return state

    def arguments(self, setting):
        """Nothing."""
        del setting
        return {}


MAKERS = {"kfac_jax": Fixed, "kfac_jax_adaptive": Adaptive}


def main() -> None:
    problem, optimizers, carries = None, {}, {}
    for line in sys.stdin:
        asked = json.loads(line)
        name, answer = asked.get("name"), {}
        if asked["do"] == "problem":
            jax.clear_caches()
            problem, optimizers = Dense(asked["data"]), {}
        elif asked["do"] == "start":
            answer, carries[name] = started(problem, optimizers, asked)
        else:
            answer, carries[name] = turned(
                problem, optimizers[name], carries[name], asked["picks"]
            )
        print(json.dumps(answer), flush=True)


def started(problem, optimizers, asked):
    with np.load(asked["params"]) as stored:
        params = [
            {"w": jnp.asarray(stored[f"w{i}"]), "b": jnp.asarray(stored[f"b{i}"])}
            for i in range(len(stored.files) // 2)
        ]
    name = asked["name"]
    if name not in optimizers:
        optimizers[name] = MAKERS[name](problem)
    carry = params, None, jax.random.PRNGKey(0), 0, asked["setting"]
    return {"losses": problem.losses(params)}, carry


def turned(problem, optimizer, carry, picks):
    params, state, key, number, setting = carry
    picks = [np.asarray(pick) for pick in picks]
    batches = [(problem.x[pick], problem.y[pick]) for pick in picks]
    jax.block_until_ready((params, batches))
    answer = {}
    if state is None:
        # kfac-jax compiles in its first step: run it on a copy, outside the clock.
        cpu = time.process_time()
        state = optimizer.init(params, key, batches[0], setting)
        copy = jax.tree.map(jnp.copy, (params, state))
        jax.block_until_ready(optimizer.step(*copy, key, batches[0], 0, setting))
        answer["compile"] = time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        key, draw = jax.random.split(key)
        params, state = optimizer.step(params, state, draw, batch, number, setting)
        number += 1
    jax.block_until_ready((params, state))
    answer |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    answer["losses"] = problem.losses(params)
    return answer, (params, state, key, number, setting)


if __name__ == "__main__":
    main()
