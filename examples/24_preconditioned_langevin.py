"""Langevin dynamics preconditioned by a Laplace posterior: samples in few steps.

    θ ← θ + ε/2 C ∇ log p(θ | data) + √ε C^½ ξ,     C = (N F + Δ)⁻¹,  ξ ~ N(0, I)

C makes all directions equally long, so that one step size serves badly scaled inputs
(Girolami & Calderhead 2011); `posterior.sample` gives θ + C^½ ξ, `metric.solve` C g.

Logistic regression, 569 tumours by six unscaled measurements: |mean − true mean| in
deviations and variance / true variance, averaged; the truth by importance sampling:

    Laplace            0.076   0.991
    Langevin           0.079   0.001
    preconditioned     0.017   1.096
"""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import natgrad as ng

jax.config.update("jax_enable_x64", True)
x, y = load_breast_cancer(return_X_y=True)
x = jnp.insert(x[:, :6], 0, 1.0, axis=1)
fit = LogisticRegression(C=1 / 0.1, fit_intercept=False, solver="newton-cholesky")
theta = jnp.asarray(fit.fit(x, y).coef_[0])
model = ng.Model(lambda t, x: x @ t, ng.families.Bernoulli())
energy = lambda t: len(x) * model.loss(t, x, y) + 0.1 / 2 * jnp.vdot(t, t)


def langevin(posterior):  # 64 chains of 400 steps with ε = 0.3
    def move(t, key):
        drift = posterior.metric.solve(jax.grad(energy)(t), posterior.damping) / len(x)
        return t - 0.15 * drift + jnp.sqrt(0.3) * (posterior.sample(key) - theta), t

    run = jax.jit(jax.vmap(lambda keys: jax.lax.scan(move, theta, keys)[1]))
    return run(jax.random.split(jax.random.key(0), (64, 400)))[:, 100:].reshape(-1, 7)


fisher = ng.curvature.Dense(model).at(theta, x)
longest = jnp.full(7, fisher.largest_eigenvalue())  # as F, this is plain Langevin
plain = ng.metrics.DiagonalMetric(fisher.layout, longest)
laplace = ng.laplace.Posterior(model, theta, fisher, len(x), 0.1)
precision = len(x) * (fisher.dense() + laplace.damping * jnp.eye(7))
away = jax.vmap(laplace.sample)(jax.random.split(jax.random.key(1), 100_000)) - theta
wide = theta + 1.3 * away
log_q = -jnp.sum(away @ precision * away, axis=1) / 2
weights = jax.nn.softmax(-jax.lax.map(energy, wide, batch_size=1000) - log_q)
mean = weights @ wide
variance = weights @ (wide - mean) ** 2
results = {}
for name, draws in {
    "Laplace": theta + away,
    "Langevin": langevin(ng.laplace.Posterior(model, theta, plain, len(x), 0.1)),
    "preconditioned": langevin(laplace),
}.items():
    off = jnp.mean(jnp.abs(draws.mean(0) - mean) / jnp.sqrt(variance))
    results[name] = float(off), float(jnp.mean(draws.var(0) / variance))
    print(f"{name:<16}{results[name][0]:8.3f}{results[name][1]:8.3f}")
