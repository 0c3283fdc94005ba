"""Any curvature as an optax transformation.

    d_k = (F̄_k + λ_k I)⁻¹ g_k,     F̄_k the moving average of `natgrad.transforms.state`

One step is five calls, each to the file of its name: `validation`, `statistics_update`,
`solve`, `trust_region`, `health`.

The state holds arrays only and never changes its structure, so it passes through
`jax.jit`, `lax.scan`, `vmap` and checkpoints. For parameters without a leaf, such as
those of a group of `optax.partition` that nobody is in, it has a 0 where statistics
would be, and updates are left alone. A step whose gradient, statistics, damping or
solution are not finite (or whose damping is negative) is skipped: the update is 0, the
statistics stay what they were, and `health` says so.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_in, check_weight_decay, known_value
from natgrad.curvature.base import Curvature
from natgrad.solvers.base import Solver
from natgrad.transforms.averaging import ByBatch, check_decay
from natgrad.transforms.damping import Damping, DampingLike, as_damping, check_scalar
from natgrad.transforms.health import compute_health
from natgrad.transforms.inverse_cache import (
    EVERY_STEP,
    Refresh,
    check_refresh,
    init_inverse_cache,
)
from natgrad.transforms.observation import owner
from natgrad.transforms.radius import AdaptiveRadius
from natgrad.transforms.solve import solve
from natgrad.transforms.state import (
    ScaleByCurvatureState,
    state_of_nothing,
    unknown_health,
)
from natgrad.transforms.statistics_update import update_statistics_and_inverse
from natgrad.transforms.trust_region import TrustRegion, apply_trust_region
from natgrad.transforms.validation import transformation, validate_step
from natgrad.tree import Layout, of_pairs
from natgrad.typing import ArrayLike


def scale_by_curvature(
    curvature: Curvature,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike | ByBatch = 0.0,
    solver: Solver | None = None,
    refresh: Refresh = EVERY_STEP,
    trust_region: TrustRegion | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by (F + λI)⁻¹ g.

    `update` takes the batch as extra arguments:

        tx.update(grads, state, params, inputs=x)               # labels that need none
        tx.update(grads, state, params, inputs=x, targets=y)    # Empirical labels
        tx.update(grads, state, params, statistics=statistics)  # from value_and_grad
        tx.update(grads, state, params, inputs=x, rows=rows)    # value_grad_and_rows
        tx.update(grads, state, params)                         # after natgrad.observe

    With `statistics=` give `inputs=x` too where there is a trust region: it measures
    its divergence on the batch, and without one the quadratic model alone decides. Its
    learning rate must be that of what follows in the chain.
    `damping=` in place of the rule's λ where something else adapts it (a number
    multiplies a rule that is by layer) and, inside
    `optax.masked` or `optax.multi_transform`, `model_params=` with the whole parameter
    tree, of which `params` is then a part.

    Args:
        curvature: the approximation of the Fisher information.
        damping: λ >= 0, or a schedule of it; in the units of F, where it is λI. By
            layer, as a tree, `natgrad.ByPath` or `natgrad.Relative`: see
            `natgrad.solvers.damping`.
        decay: β of the moving average in [0, 1); 0 uses the current batch alone. Or a
            `natgrad.transforms.averaging.ByBatch`: where a batch does not determine F.
        solver: (metric, gradient, damping) -> direction; None for `metric.solution`.
        refresh: how often statistics and cached inverses are renewed.
        trust_region: momentum, weight decay, and a bound on the KL divergence of what
            is applied, in nats a label; None for none.
        seed: of the random key, for sampled labels and whatever else is drawn.

    Returns:
        A transformation whose state is a `ScaleByCurvatureState`.

    Raises:
        ValueError: for impossible arguments, here or at the first `update`.
    """
    rule = as_damping(damping)
    check_refresh(refresh, solver)
    curvature = refresh.of_part(curvature)
    check_decay(decay, curvature)
    first = 0.0 if isinstance(decay, ByBatch) else decay
    _check_trust_region(trust_region)

    def init(params):
        velocity, radius = trust_region.init(params) if trust_region else ((), ())
        if not jax.tree.leaves(params):
            return state_of_nothing(seed, first, velocity, radius)
        layout = Layout.of(params)
        specialized = curvature.specialize(params)
        check_decay(decay, specialized)
        return ScaleByCurvatureState(
            count=jnp.zeros((), jnp.int32),
            key=jax.random.PRNGKey(seed),
            decay=jnp.asarray(first, layout.dtype),
            estimates=jnp.zeros((), jnp.int32),
            statistics=specialized.init(params),
            inverse=init_inverse_cache(refresh, solver, specialized, params),
            health=unknown_health(layout.dtype),
            owner=owner(curvature, params, decay),
            velocity=velocity,
            radius=radius,
        )

    def update(updates, state, params=None, **extra_args):
        """One step; other transformations' extra arguments are left alone."""
        step = validate_step(curvature, rule, updates, state, params, extra_args)
        beta = decay.of(step, state) if isinstance(decay, ByBatch) else decay
        current = known_value(beta) == 0 and refresh.statistics == 1
        before = state._replace(decay=jnp.asarray(beta, step.layout.dtype))
        state, usable = update_statistics_and_inverse(refresh, solver, step, before)
        solved = solve(refresh, solver, step, state, usable)
        exact = current and step.curvature.is_exact and step.statistics is None
        bounded = apply_trust_region(trust_region, step, solved, state, exact)
        health = compute_health(step, usable, solved, bounded, state.health)
        if step.curvature.requires_batch:  # its solution alone shows a bad batch
            state = tree.where(solved.usable, state, before)
        return bounded.direction, state._replace(
            count=tree.increment(state.count, period=refresh.statistics),
            key=step.batch.key,
            inverse=solved.inverse,
            health=health,
            velocity=bounded.velocity,
            radius=bounded.radius,
        )

    return transformation(*of_pairs(init, update))


def _check_trust_region(rule: TrustRegion | None) -> None:
    """Raise a ValueError for impossible numbers."""
    if rule is None:
        return
    if rule.radius is not None and not isinstance(rule.radius, AdaptiveRadius):
        check_scalar("trust_region", rule.radius)
        radius = None if callable(rule.radius) else known_value(rule.radius)
        if radius is not None and not radius > 0:
            raise ValueError(
                "The radius of a trust region must be positive, in nats a label, got "
                f"{rule.radius}; None for no bound."
            )
    if rule.momentum is not None:
        check_in("momentum", rule.momentum, lambda m: 0 <= m < 1, "lie in [0, 1)")
    check_weight_decay(rule.weight_decay)
