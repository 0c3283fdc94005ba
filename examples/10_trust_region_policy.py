"""A policy gradient inside a KL trust region: a pendulum learns to swing up (TRPO).

The torque of the pendulum is drawn from a normal law whose mean is a network of the
state, a `NormalMeanLogScale` model. The policy gradient g of the surrogate

    L(θ) = −mean of A p(u | s, θ)/p(u | s, θ_old)

is turned into the natural gradient d = (F + λI)⁻¹ g by conjugate gradients, where F is
the Fisher information of the policy over the visited states, and the step −η d is
shrunk to ½ η² ⟨d, F d⟩ <= δ, the bound on the mean KL divergence in that quadratic
model, and then until the measured divergence obeys it (Schulman et al. 2015). The rate
η is so large that the bound decides. The step is shortened further until the surrogate
has fallen.

The value function, a network with a `NormalMean` law, is fitted to the returns by a few
natural gradient (here Gauss-Newton) steps; advantages A are exponentially weighted sums
of its errors (generalised advantage estimation).

    python examples/10_trust_region_policy.py [picture.png]

iteration  0  mean return  -1226.2  KL 0.0098 <= 0.01  (whole step 0.0098)
iteration 10  mean return   -658.9  KL 0.0095 <= 0.01  (whole step 0.0095)
iteration 20  mean return   -150.5  KL 0.0096 <= 0.01  (whole step 0.0096)
iteration 39  mean return   -145.5  KL 0.0094 <= 0.01  (whole step 0.0094)
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import natgrad as ng

ITERATIONS, PENDULUMS, HORIZON, WIDTH = 40, 64, 200, 32
RADIUS, RATE, SHRINK, SHORTEST = 0.01, 10.0, 0.8, 1e-3
DISCOUNT, TRACE = 0.97, 0.95
VALUE_STEPS, VALUE_UNIT = 3, 10.0


# 1. The pendulum: no torque that it is allowed lifts it from rest -------------------


def observe(state):
    """(cos, sin, velocity) of states (angle from the top, velocity) [..., 2]."""
    angle, velocity = state[..., 0], state[..., 1]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity / 4], -1)


def swing(state, torque):
    """The state 0.05 s later, and the reward, which is at most 0."""
    angle, velocity = state[..., 0], state[..., 1]
    torque = jnp.clip(torque, -2, 2)
    turned = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(turned**2 + 0.1 * velocity**2 + 0.001 * torque**2)
    velocity = velocity + 0.05 * (15 * jnp.sin(angle) + 3 * torque)
    velocity = jnp.clip(velocity, -8, 8)
    return jnp.stack([angle + 0.05 * velocity, velocity], -1), reward


def roll_out(key, params):
    """(observations, torques, rewards), [HORIZON, PENDULUMS, ...]; the last state."""
    of_start, of_torques = jax.random.split(key)
    most = jnp.array([jnp.pi, 1.0])
    start = most * jax.random.uniform(of_start, (PENDULUMS, 2), minval=-1)

    def move(state, key):
        seen = observe(state)
        torque = actor.sample(key, params, seen)
        state, reward = swing(state, torque)
        return state, (seen, torque, reward)

    last, seen = jax.lax.scan(move, start, jax.random.split(of_torques, HORIZON))
    return seen, observe(last)


# 2. Policy and value function -----------------------------------------------------


def initial_network(key):
    key1, key2 = jax.random.split(key)
    return {
        "w1": jax.random.normal(key1, (3, WIDTH)) / np.sqrt(3),
        "b1": jnp.zeros(WIDTH),
        "w2": 0.01 * jax.random.normal(key2, (WIDTH, 1)),
        "b2": jnp.zeros(1),
    }


def network(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def policy(params, x):
    """(mean, log scale) of the torque, [N, 2]; the scale is the same in all states."""
    mean = network(params["network"], x)
    return jnp.concatenate([mean, jnp.broadcast_to(params["log_scale"], mean.shape)], 1)


actor = ng.Model(policy, ng.families.NormalMeanLogScale())
critic = ng.Model(network, ng.families.NormalMean())

curvature = ng.curvature.MatrixFree(actor, stop=ng.krylov.RelativeResidual(1e-3, 10))
trust = ng.damping.TrustRegion(RADIUS, RATE)
actor_tx = optax.chain(
    ng.scale_by_curvature(curvature, damping=1e-3, trust_region=trust),
    optax.scale_by_learning_rate(RATE),
)
critic_tx = ng.natural_gradient(0.5, critic, damping=1e-3)


# 3. One iteration -----------------------------------------------------------------


def advantages(params, seen, rewards, last):
    """A and the returns it estimates, [HORIZON, PENDULUMS], in units of VALUE_UNIT."""
    value = lambda x: network(params, x)[..., 0]
    values = value(jnp.concatenate([seen, last[None]]))
    errors = rewards / VALUE_UNIT + DISCOUNT * values[1:] - values[:-1]

    def back(advantage, error):
        advantage = error + DISCOUNT * TRACE * advantage
        return advantage, advantage

    _, found = jax.lax.scan(back, jnp.zeros_like(errors[0]), errors, reverse=True)
    return found, found + values[:-1]


def improve_policy(params, x, torques, advantage):
    """New parameters, and the KL divergences of the whole step and of the step taken.

    Each is a mean over the visited states, not its quadratic model.
    """
    before = actor.log_prob(params, x, torques)

    def surrogate(params):
        ratio = jnp.exp(actor.log_prob(params, x, torques) - before)
        return -jnp.mean(ratio * advantage)

    loss, gradient = jax.value_and_grad(surrogate)(params)
    updates, _ = actor_tx.update(gradient, actor_tx.init(params), params, inputs=x)

    def shortened(length):
        trial = jax.tree.map(lambda p, u: p + length * u, params, updates)
        return trial, actor.kl(params, trial, x)

    def refused(length):
        trial, divergence = shortened(length)
        return (divergence > RADIUS) | (surrogate(trial) >= loss)

    length = jax.lax.while_loop(
        lambda length: (length > SHORTEST) & refused(length),
        lambda length: SHRINK * length,
        jnp.ones(()),
    )
    length = jnp.where(length > SHORTEST, length, 0)
    improved, divergence = shortened(length)
    return improved, (shortened(1.0)[1], divergence)


def fit_values(params, x, returns):
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(critic.loss)(params, x, returns)
        updates, state = critic_tx.update(gradient, state, params, inputs=x)
        return (optax.apply_updates(params, updates), state), None

    start = (params, critic_tx.init(params))
    (params, _), _ = jax.lax.scan(step, start, length=VALUE_STEPS)
    return params


@jax.jit
def iterate(key, policy_params, value_params):
    """Parameters after one iteration, the mean return before it, and divergences."""
    (seen, torques, rewards), last = roll_out(key, policy_params)
    advantage, returns = advantages(value_params, seen, rewards, last)
    standard = (advantage - jnp.mean(advantage)) / jnp.std(advantage)
    x, torques = seen.reshape(-1, 3), torques.reshape(-1)
    policy_params, divergences = improve_policy(
        policy_params, x, torques, standard.reshape(-1)
    )
    value_params = fit_values(value_params, x, returns.reshape(-1, 1))
    return policy_params, value_params, jnp.mean(jnp.sum(rewards, axis=0)), divergences


# 4. Learning ----------------------------------------------------------------------


def main(picture=None):
    keys = jax.random.split(jax.random.key(0), 3)
    policy_params = {"network": initial_network(keys[0]), "log_scale": jnp.zeros(1)}
    value_params = initial_network(keys[1])
    start = time.perf_counter()
    rows = []
    for i in range(ITERATIONS):
        policy_params, value_params, reward, (full, taken) = iterate(
            jax.random.fold_in(keys[2], i), policy_params, value_params
        )
        rows.append([float(reward), float(full), float(taken)])
        print(
            f"iteration {i:2}  mean return {rows[-1][0]:8.1f}  KL {rows[-1][2]:.4f} "
            f"<= {RADIUS}  (whole step {rows[-1][1]:.4f})"
        )
    print(f"{time.perf_counter() - start:.1f} s")
    returns, whole, kl = np.array(rows).T
    results = {"returns": returns, "kl": kl, "whole_step_kl": whole, "radius": RADIUS}
    if picture is not None:
        draw(results, picture)
    return results


def draw(results, picture):
    figure = Figure(figsize=(10, 4), layout="constrained")
    learning, divergence = figure.subplots(1, 2)
    learning.plot(results["returns"], "C0")
    learning.set(xlabel="iteration", ylabel="mean return", title="Pendulum swing-up")
    divergence.plot(results["whole_step_kl"], "C1.", label="whole step")
    divergence.plot(results["kl"], "C0", label="step taken")
    divergence.axhline(results["radius"], color="black", linestyle=":", label="bound")
    divergence.set(xlabel="iteration", ylabel="KL, nats", title="Measured divergence")
    divergence.set_ylim(bottom=0)
    divergence.legend()
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
