"""Influence functions: leaving an example out, to first order, under any curvature.

    score(q, n) = (1/N) ∇ℓ_qᵀ (F + λI)⁻¹ ∇ℓ_n                      nats, [Q, N]

At the minimum of (1/N) Σ_n w_n ℓ_n + ½ λ |θ|², if F + λI is the Hessian there, this is
−∂ℓ_q/∂w_n. Elsewhere it is a convention: `retrained` says how good.

Gradients are kept as their layers' rows (`natgrad.solvers.score_jacobian`), for one
batch of training examples at a time. By the factored inverse of a Kronecker metric a
pair costs I + O a layer, and nothing as large as the parameters is formed,

    Σ_ts (x_qtᵀ A⁻¹ x_ns) (g_qtᵀ G⁻¹ g_ns)          over positions t and s;

else it costs I O, Σ_s x_nsᵀ W_q g_ns. Blockwise metrics (K-FAC, EKFAC) give W_q anew
for each batch, a few queries at a time; of others all W_q are held.

Source: Koh & Liang (2017), Understanding black-box predictions via influence functions,
equation 2 at ε = −1/N; Grosse et al. (2023), Studying large language model
generalization with influence functions, for EKFAC; Park et al. (2023), TRAK, for F.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.curvature import Empirical, Gram
from natgrad.metrics import BlockwiseMetric, Metric
from natgrad.metrics.blockwise import kron_matvec
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov, KroneckerMetric
from natgrad.metrics.kronecker.factored_tikhonov import Inverted
from natgrad.model import Model
from natgrad.solvers.base import CachedSolver, Solver
from natgrad.solvers.damping import DampingLike
from natgrad.solvers.jacobian_blocks import JacobianBlock, LinearBlock, product
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.typing import Array, ArrayLike, Inputs, Params

Data = tuple[Inputs, ArrayLike]
# Numbers of solutions, or of inner products, that are alive at once.
ELEMENTS = 2**24


def influence(
    metric: Metric,
    model: Model,
    params: Params,
    train: Data | Iterable[Data],
    query: Data,
    damping: DampingLike = 0.0,
    solver: Solver | None = None,
) -> Float[Array, "Q N"]:
    """What leaving a training example out adds to a query's loss, to first order.

        metric = ng.curvature.EKFAC(model).at(params, x, y)
        scores = influence(metric, model, params, (x, y), (x2, y2), damping=1e-3)

    Args:
        metric: F at θ, of any curvature.
        model: the model.
        params: θ, after training.
        train: inputs and labels; or batches of them, in any iterable but a tuple.
        query: inputs and labels.
        damping: λ >= 0, in the units of F, by layer too; of a loss with ½ η |θ|² it
            holds η.
        solver: in place of `metric.solve`; `natgrad.kronecker.FactoredTikhonov()` is
            the cheapest for many queries.

    Returns:
        [Q, N] in nats; N, or Σ_n ω_n for a model with weights, counts all batches.

    Raises:
        ValueError: params are not those that the metric is of.
    """
    metric.layout.check(params, "params")
    default = (
        Eigenbasis() if isinstance(metric, KroneckerMetric) else type(metric).solve
    )
    chosen: Any = solver or default
    cached, kept = isinstance(chosen, CachedSolver), ()
    if cached:
        kept = chosen.factorize(metric, damping, range(chosen.num_blocks(metric)))

    def solution(metric, kept, rows, pick):
        v = rows.layout.unravel(rows.layout.ravel(rows.pull(pick)))
        if cached:
            return chosen.solve(metric, kept, v, damping).value
        return chosen(metric, v, damping)

    @jax.jit
    def products(params, operands, directions, x, y):
        found, scale, total = _rows(model, params, x, y)
        metric, kept, rows = operands
        if isinstance(chosen, FactoredTikhonov) and _match(metric, rows, found):
            terms = map(_factored, kept, rows.pieces, found.pieces)
            return jnp.matmul(directions, sum(terms)) * scale[None], total

        def of_one(direction):
            v = solution(metric, kept, rows, direction) if again else direction
            return found.push(v)

        at_once = max(1, min(rows.size, ELEMENTS // rows.layout.size))
        scores = jax.lax.map(of_one, directions, batch_size=at_once)
        return scores * scale[None], total

    rows, scale, _ = _rows(model, params, *query)
    again, directions = isinstance(metric, BlockwiseMetric), jnp.diag(scale)
    operands = (metric, kept, rows) if again else (None, None, rows)
    if not again:
        directions = jax.vmap(lambda v: solution(metric, kept, rows, v))(directions)
    batches = [train] if isinstance(train, tuple) else train
    found = [products(params, operands, directions, x, y) for x, y in batches]
    scores, totals = zip(*found, strict=True)
    return jnp.concatenate(scores, axis=1) / sum(totals)


def _rows(model: Model, params, x, y) -> tuple[Jacobian, Array, Array]:
    """Rows b_n of the examples, the numbers [N] that make ∇ℓ_n of them, and Σ_n ω_n."""
    gram, y = Gram(model, Empirical()), jnp.asarray(y)
    rows = gram.jacobian(gram.estimate(params, x, y), params, x, y)
    examples, total = model.examples(params, x)
    weights = jnp.max(examples.weights.reshape(examples.weights.shape[0], -1), axis=1)
    return rows, -jnp.sqrt(weights * total).astype(rows.layout.dtype), total


def _match(*parts: KroneckerMetric | Jacobian) -> bool:
    """Are their blocks the same?"""
    first, *others = ([(b.name, b.shape) for b in p.blocks or ()] for p in parts)
    return all(other == first for other in others)


def _factored(inverse: Inverted, query: JacobianBlock, train: JacobianBlock) -> Array:
    """⟨b_q, A⁻¹ b_n G⁻¹⟩ of one block, [Q, N]."""
    a, g, _ = inverse
    if not (isinstance(query, LinearBlock) and isinstance(train, LinearBlock)):

        def of_one(pick):
            parts = query.pull(pick[None])
            v = jnp.concatenate(parts, axis=1)
            w = kron_matvec(a, g)(v.reshape((*g.shape[:-2], *v.shape[1:])))
            w = jnp.split(w.reshape(v.shape), [parts[0].shape[1]], axis=1)
            return train.push(w[: len(parts)])[0]

        return jax.lax.map(of_one, jnp.eye(query.columns[1], dtype=g.dtype))
    a, g = (m.reshape((-1, *m.shape[-2:])) for m in (a, g))
    (x, h), (y, c) = ((rows.homogeneous, rows.g[0]) for rows in (query, train))
    x, h = product("lqti,lij->qltj", x, a), product("lqto,lop->qltp", h, g)

    def of_query(pair):
        inner = product("lti,lnsi->lnts", pair[0], y)
        return jnp.sum(inner * product("lto,lnso->lnts", pair[1], c), axis=(0, 2, 3))

    at_once = max(1, ELEMENTS // (y[..., 0].size * x.shape[2]))
    return jax.lax.map(of_query, (x, h), batch_size=min(at_once, len(x)))
