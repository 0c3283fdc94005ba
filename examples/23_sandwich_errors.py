"""White's standard errors: right where the noise is not what the model says it is.

    cov θ = F⁻¹ E F⁻¹ / N,    F the Fisher information, E the empirical one

F⁻¹/N is the covariance if the model is right; the sandwich also if only its mean is.
For a linear model it is statsmodels' `OLS(...).fit(cov_type="HC0")`.

300 points y = 1 + 2 x + noise of scale 0.2 + |x|; standard errors of both coefficients:

    inverse Fisher             0.06677   0.06556
    sandwich                   0.06566   0.10104
    White's formula (HC0)      0.06566   0.10104
    spread of 2000 fits        0.06567   0.10950

statsmodels 0.15.0 says 0.06566 and 0.10104 (HC0), 0.06677 and 0.06556 (nonrobust).

Source: White (1980), A heteroskedasticity-consistent covariance matrix estimator; White
(1982), Maximum likelihood estimation of misspecified models.
"""

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng

jax.config.update("jax_enable_x64", True)
N = 300


def fit(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=N)
    features = np.stack([np.ones(N), x], axis=1)
    y = 1 + 2 * x + (0.2 + np.abs(x)) * rng.normal(size=N)
    return features, y, np.linalg.lstsq(features, y, rcond=None)[0]


features, y, theta = fit(0)
residuals = y - features @ theta
scale = np.sqrt(np.sum(residuals**2) / (N - 2))
model = ng.Model(lambda t, x: x @ t[:, None], ng.families.NormalMean(scale))
empirical = ng.curvature.Dense(model, ng.curvature.Empirical())
f = ng.curvature.Dense(model).at(jnp.asarray(theta), features)
e = empirical.at(jnp.asarray(theta), features, y[:, None])
sandwich = jax.vmap(lambda unit: f.solve(e.mv(f.solve(unit))))(jnp.eye(2)) / N
inverse = np.linalg.inv(features.T @ features)
hc0 = inverse @ (features.T * residuals**2) @ features @ inverse
results = {
    "inverse Fisher": np.sqrt(np.asarray(f.inverse_diagonal(0.0)) / N),
    "sandwich": np.sqrt(np.diagonal(np.asarray(sandwich))),
    "White's formula (HC0)": np.sqrt(np.diagonal(hc0)),
    "spread of 2000 fits": np.std([fit(n + 1)[2] for n in range(2000)], axis=0),
}
for name, (intercept, slope) in results.items():
    print(f"{name:<24}{intercept:10.5f}{slope:10.5f}")
