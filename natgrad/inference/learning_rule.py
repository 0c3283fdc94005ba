"""Natural-gradient variational inference: the Bayesian learning rule.

The law q of an exponential family that maximises the evidence lower bound

    ELBO(q) = E_q[log p(D | w)] − KL(q ‖ prior)

is found by natural-gradient steps in its natural parameters. With a prior of the same
family, ∇_μ KL(q ‖ prior) = η − η_prior, so that

    η' = η + ρ ∇_μ ELBO = (1 − ρ) η + ρ (η_prior + ∇_μ E_q[log p(D | w)]):

with a conjugate likelihood one step of ρ = 1 is Bayes' rule. With any other prior it is
one more expectation, ELBO = E_q[log p(D | w) + log p(w)] + H(q), and with h the log
base measure

    η' = (1 − ρ) η + ρ ∇_μ E_q[log p(D | w) + log p(w) − h(w)].

Domain. The step ends with `geometry.domain.retract_into_domain`: no step of any size
leaves the domain, so precisions stay positive definite.

Damping. A step is halved until the ELBO at its end is finite. Where ρ, the ELBO or its
gradient is not finite before the step, q stays as it is and ρ' is 0. Undamped steps of
ρ = 1 may end in a 2-cycle: with `halvings` > 0 a step is halved, at most that many
times, until also

    ELBO(q') ≥ ELBO(q) + KL(q ‖ q')/(2 ρ').

The halving ends earlier where the step is down to rounding: q stays as it is then.

The step is mirror ascent in μ with the Bregman divergence KL(q' ‖ q), and without the 2
this is its sufficient increase under smoothness relative to that divergence; it holds
with equality for conjugate models at ρ = 1, whatever the length of the step. The number
of halvings is a whole number without a derivative: derivatives are those of the steps
that were taken, exact wherever the number does not change.

Batches. The log-likelihood of a batch is multiplied by `scale` = N/B, which makes value
and gradient unbiased; the search compares values on the same batch and draws.

Source: Khan & Rue (2023), The Bayesian learning rule; Khan & Lin (2017), Conjugate-
computation variational inference; Lu, Freund & Nesterov (2018), Relatively smooth
convex optimization by first-order methods.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.arguments import check_in, is_positive
from natgrad.families.base import ExponentialFamily
from natgrad.geometry.atlases import charts
from natgrad.geometry.domain import displaced_part
from natgrad.inference.evidence import LearningRule, elbo, elbo_and_gradient
from natgrad.typing import Array, ArrayLike, Key

SUFFICIENT = 0.5  # of what smoothness relative to the divergence gives
RETURNED = 1e-2  # of the last change: what a 2-cycle leaves after two steps


class InferenceState(NamedTuple):
    """A law q and how the last step went; what is not known at the start is NaN.

    Attributes:
        natural: η, the natural parameters of q.
        previous: η before the last step.
        elbo: ELBO(η) in nats, on the last step's data and draws.
        count: steps taken.
        falls: steps at whose end the ELBO was lower than at their start, by more than
            rounding.
        rate: the ρ that was taken, after halvings; 0 where no step has a finite ELBO.
        kept: the part of that step that the domain allowed: 1 is a straight step.
        margin: the least of η's distances from the boundary of its domain, see
            `geometry.Chart`; infinite where there is no boundary.
        change: KL(q ‖ q') + KL(q' ‖ q) of the last two laws, in nats.
        returned: the same of this law and the one before the last.
        cycle: steps, up to the last, that led back: `returned` below 1 % of `change`,
            where that is more than rounding. From 3 on, say, the steps go round in a
            2-cycle and need a smaller ρ.
    """

    natural: Array
    previous: Array
    elbo: Array
    count: Array
    falls: Array
    rate: Array
    kept: Array
    margin: Array
    change: Array
    returned: Array
    cycle: Array


def init(rule: LearningRule, natural: Array) -> InferenceState:
    """The state before the first step.

    Args:
        rule: the specification.
        natural: η of the first law, floating.

    Returns:
        The state at that law; what is not known yet is NaN.

    Raises:
        ValueError: for natural parameters that are not floating.
    """
    natural = jnp.asarray(natural)
    if not jnp.issubdtype(natural.dtype, jnp.floating):
        raise ValueError(
            f"init: natural has dtype {natural.dtype}; expected floating natural "
            f"parameters of {rule.family!r}."
        )
    unknown = jnp.full((), jnp.nan, natural.dtype)
    none = jnp.zeros((), jnp.int32)
    return InferenceState(
        natural=natural,
        previous=natural,
        elbo=unknown,
        count=none,
        falls=none,
        rate=unknown,
        kept=unknown,
        margin=_margin(rule, natural),
        change=unknown,
        returned=unknown,
        cycle=none,
    )


def step(
    rule: LearningRule,
    state: InferenceState,
    prior: Any,
    data: Any,
    rho: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
    key: Key | None = None,
) -> InferenceState:
    """One step η' = η + ρ' ∇_μ ELBO, halved and shortened as the module says.

    Args:
        rule: the specification.
        state: from `init` or the last step.
        prior: natural parameters of the prior, or the data of `rule.log_prior`.
        data: of `rule.log_likelihood`, a batch of it or all.
        rho: ρ, the step size before halvings.
        scale: N/B, for a batch of B of N examples.
        key: for rules that draw.

    Returns:
        The state at the law after the step.

    Raises:
        ValueError: for a prior of another form, where a rule needs a key, and for ρ or
            a scale that are known and not positive.
    """
    check_in("rho", rho, is_positive, "be positive")
    check_in("scale", scale, is_positive, "be positive")
    family, natural = rule.family, state.natural
    chart = charts(family)["natural"]
    value, direction = elbo_and_gradient(rule, natural, prior, data, scale, key)
    rho = jnp.asarray(rho, natural.dtype)
    rounding = 16 * jnp.finfo(natural.dtype).eps * (1 + jnp.abs(value))
    usable = jnp.isfinite(value) & jnp.all(jnp.isfinite(direction)) & jnp.isfinite(rho)
    direction, rho = jnp.where(usable, direction, 0), jnp.where(usable, rho, 0)

    def short_enough(rate, count):
        move = rate * direction
        end, part = displaced_part(chart, natural, move)
        gain = elbo(rule, end, prior, data, scale, key) - value
        good = jnp.isfinite(gain) & (part > 0)
        if rule.halvings:
            least = SUFFICIENT * family.kl(natural, end) / (rate * part)
            good = good & ((gain >= least - rounding) | (count >= rule.halvings))
        return good | ~usable | jnp.all(natural + move == natural)

    rho = rho * 0.5 ** _halvings(short_enough, rho).astype(rho.dtype)
    end, part = displaced_part(chart, natural, rho * direction)
    end_value = elbo(rule, end, prior, data, scale, key)
    change = _both_ways(family, end, natural)
    returned = _both_ways(family, end, state.previous)
    changed = change > jnp.sqrt(jnp.finfo(natural.dtype).eps)
    back = changed & (returned < RETURNED * change)
    return InferenceState(
        natural=end,
        previous=natural,
        elbo=end_value,
        count=tree.increment(state.count),
        falls=tree.increment(state.falls, end_value < value - rounding),
        rate=rho,
        kept=part,
        margin=_margin(rule, end),
        change=change,
        returned=returned,
        cycle=jnp.where(back, tree.increment(state.cycle), 0),
    )


def _halvings(short_enough, rate: Array) -> Array:
    """How often `rate` is halved until it is short enough; at most to a rate of 0."""

    def halve(carry):
        count, _ = carry
        good = short_enough(rate * 0.5 ** count.astype(rate.dtype), count)
        return jnp.where(good, count, count + 1), good

    start = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return jax.lax.while_loop(lambda carry: ~carry[1], halve, start)[0]


def _margin(rule: LearningRule, natural: Array) -> Array:
    margins = charts(rule.family)["natural"].margins(natural)
    return jnp.min(margins, initial=jnp.inf)


def _both_ways(family: ExponentialFamily, eta: Array, eta2: Array) -> Array:
    """⟨η − η2, μ − μ2⟩ = KL + KL the other way round."""
    return jnp.sum((eta - eta2) * (family.mean(eta) - family.mean(eta2)))
