"""`natgrad.laplace` beside laplace-torch: the same network, data and priors.

    pip install -e . torch laplace-torch        # in an environment of its own
    python -m benchmarks.laplace_torch

The largest difference of the log evidence, the covariances of outputs and the probit
probabilities of K-FAC posteriors, over the largest value. No biases: laplace-torch
takes a bias for a layer of its own.
"""

from __future__ import annotations

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from laplace import Laplace  # pyright: ignore[reportMissingImports,reportAttributeAccessIssue]

import natgrad as ng

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)

PRIORS = {"one": (1.0, [1.0]), "by layer": ({"a": 0.3, "b": 2.0}, [0.3, 2.0])}


def problem() -> tuple[dict, dict]:
    """(weights, data): 40 examples of three classes, and six to predict."""
    draw = np.random.default_rng(0)
    weights = {"a": draw.normal(size=(3, 5)), "b": draw.normal(size=(5, 3))}
    data = {"x": draw.normal(size=(40, 3)), "y": draw.integers(0, 3, 40)}
    return weights, data | {"new": draw.normal(size=(6, 3))}


def ours(weights: dict, data: dict, prior) -> tuple[np.ndarray, ...]:
    """(log evidence, covariances, probabilities) by natgrad."""
    model = ng.Model(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], ng.families.Categorical()
    )
    params, x, y = jax.tree.map(jnp.asarray, (weights, data["x"], data["y"]))
    metric = ng.curvature.KFAC(model).at(params, x, y)
    posterior = ng.laplace.Posterior(model, params, metric, len(x), prior)
    outputs = posterior.outputs(jnp.asarray(data["new"]))
    evidence = posterior.log_evidence(model.loss(params, x, y))
    return tuple(map(np.asarray, (evidence, outputs.covariance, outputs.probit())))


def theirs(weights: dict, data: dict, prior: list) -> tuple[np.ndarray, ...]:
    """The same by laplace-torch."""
    x, y, new = (torch.tensor(data[name]) for name in ("x", "y", "new"))
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 5, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(5, 3, bias=False),
    )
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor(weights["a"].T))
        network[2].weight.copy_(torch.tensor(weights["b"].T))
    posterior = Laplace(
        network,
        "classification",
        subset_of_weights="all",
        hessian_structure="kron",
        prior_precision=torch.tensor(prior),
    )
    batches = torch.utils.data.TensorDataset(x, y)
    posterior.fit(torch.utils.data.DataLoader(batches, batch_size=40))
    jacobians, _ = posterior.backend.jacobians(new)
    found = (
        posterior.log_marginal_likelihood(),
        posterior.functional_variance(jacobians),
        posterior(new, link_approx="probit"),
    )
    return tuple(each.detach().numpy() for each in found)


def main() -> None:
    """Print the differences for one prior, and for one a layer."""
    print(f"torch {torch.__version__}, laplace-torch {version('laplace-torch')}")
    for name, (own, other) in PRIORS.items():
        weights, data = problem()
        pairs = zip(ours(weights, data, own), theirs(weights, data, other), strict=True)
        errors = [np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in pairs]
        print(f"{name}: " + "  ".join(f"{error:.1e}" for error in errors))


if __name__ == "__main__":
    main()
