"""The natural gradient on a family of laws: by hand, in four charts, in a picture.

1. Bernoulli and Gaussian by hand: the natural gradient of the mean negative
   log-likelihood is (p − ȳ) in the probability and (m − x̄) in the mean, whatever the
   coordinates that it is computed in.
2. One step from N(−1, 1.5²) towards N(1, 0.5²), the minimum of KL(q ‖ p), in four
   charts. The flow does not depend on the chart, a step does: over a path the spread
   between the charts falls like h, with the geodesic correction like h², by Runge-Kutta
   like h⁴. In the natural chart one step of size 1 lands on the target.
3. A picture of the paths over the level lines of KL, figures/06_manifolds.png. The flow
   is the e-geodesic, the straight line in natural parameters.

    python examples/06_manifolds.py

Bernoulli, p = 0.3, labels of mean 0.8: natural gradient in p -0.5000, by hand -0.5000
Normal, m = 1.3, labels of mean 1.8:    natural gradient in m -0.5000, by hand -0.5000
one step of 0.05 from N(-1, 1.5²) towards N(1, 0.5²)
  natural      mean -0.3571  sd 1.2677
  expectation  mean -0.1000  sd 0.7348
  mean/sd      mean -0.1000  sd 1.2000
  mean/log sd  mean -0.1000  sd 1.2281
one step of 1 from N(-1, 1.5²) towards N(1, 0.5²)
  natural      mean  1.0000  sd 0.5000                  ... and three that overshoot
natural_step   spread between charts of order 1.02
geodesic_step  spread between charts of order 2.14
flow_step      spread between charts of order 4.20
paths in figures/06_manifolds.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from natgrad import geometry
from natgrad.families import Bernoulli, Normal

jax.config.update("jax_enable_x64", True)  # orders are measured down to rounding
plt.switch_backend("Agg")

FIGURE = Path("figures") / "06_manifolds.png"
CHARTS = ("natural", "expectation", "mean/sd", "mean/log sd")
START = geometry.Point(Normal(), "mean/sd", jnp.array([-1.0, 1.5]))
GOAL = geometry.Point(Normal(), "mean/sd", jnp.array([1.0, 0.5]))


def loss(q):
    """KL(q ‖ N(1, 0.5²)), a function of a law."""
    return q.kl(GOAL)


def by_hand():
    """{law: (the library's natural gradient, by hand)}."""
    y_bar, p = 0.8, geometry.Point(Bernoulli(), "probability", jnp.array(0.3))
    nll = lambda q: -(y_bar * q.log_prob(1) + (1 - y_bar) * q.log_prob(0))
    # computed with the logit as the coordinate, read off with the probability
    v = geometry.natural_gradient(nll, p.to("natural")).to("probability")
    bernoulli = float(v.components), 0.3 - y_bar

    labels = jnp.array([0.5, 2.0, 2.9])
    q = geometry.Point(Normal(), "mean/log sd", jnp.array([1.3, 0.0]))
    nll = lambda q: -jnp.mean(jax.vmap(q.log_prob)(labels))
    v = geometry.natural_gradient(nll, q.to("natural")).to("mean/sd")
    normal = float(v.components[0]), 1.3 - float(labels.mean())
    print(
        "Bernoulli, p = 0.3, labels of mean 0.8: natural gradient in p "
        f"{bernoulli[0]:.4f}, by hand {bernoulli[1]:.4f}\n"
        "Normal, m = 1.3, labels of mean 1.8:    natural gradient in m "
        f"{normal[0]:.4f}, by hand {normal[1]:.4f}"
    )
    return {"bernoulli": bernoulli, "normal": normal}


@jax.jit
def stepped(h):
    """{chart: (mean, sd) after one step of size h}."""
    ends = {c: geometry.natural_step(loss, START.to(c), h) for c in CHARTS}
    return {chart: end.to("mean/sd").coordinates for chart, end in ends.items()}


def one_step(h):
    """The same, printed."""
    print(f"one step of {h:g} from N(-1, 1.5²) towards N(1, 0.5²)")
    ends = stepped(h)
    for chart in CHARTS:
        mean, sd = ends[chart]
        print(f"  {chart:12} mean {mean:7.4f}  sd {sd:.4f}")
    return ends


def orders():
    """{step: the measured order of its spread between charts}."""
    steps = {
        "natural_step": (geometry.natural_step, 1),
        "geodesic_step": (geometry.geodesic_step, 2),
        "flow_step": (geometry.flow_step, 4),
    }
    measured = {}
    for name, (step, theory) in steps.items():
        report = geometry.check.invariance_order(
            step,
            loss,
            START,
            ("natural", "mean/sd", "mean/log sd"),
            (theory - 0.5, theory + 0.8),
            counts=(64, 128, 256),
        ).raise_if_failed()
        measured[name] = report.checks[0].value
        print(f"{name:14} spread between charts of order {measured[name]:.2f}")
    return measured


def path(chart, h, steps):
    """(mean, sd) along a path of natural-gradient steps, [steps + 1, 2]."""

    def step(p, _):
        return geometry.natural_step(loss, p, h), p.to("mean/sd").coordinates

    return jax.jit(lambda p: jax.lax.scan(step, p, length=steps + 1)[1])(
        START.to(chart)
    )


def plain_gradient(h, steps):
    """The same for gradient descent in (mean, sd)."""

    def step(p, _):
        slope = geometry.gradient(loss, p).components
        return geometry.retract(p.tangent(-slope), h), p.coordinates

    return jax.lax.scan(step, START, length=steps + 1)[1]


def picture(h):
    """Draw the paths; {chart: (mean, sd) along its path}."""
    mean, sd = np.meshgrid(np.linspace(-1.4, 1.9, 120), np.linspace(0.3, 1.7, 120))
    levels = jax.jit(jax.vmap(lambda x: loss(START.at(x))))(
        jnp.stack([mean.ravel(), sd.ravel()], axis=-1)
    )
    paths = {chart: np.asarray(path(chart, h, 60)) for chart in CHARTS}
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.contour(
        mean,
        sd,
        np.asarray(levels).reshape(mean.shape),
        2.0 ** np.arange(-6, 6),
        colors="0.85",
        linewidths=0.8,
    )
    flow = jax.jit(jax.vmap(lambda t: geometry.e_geodesic(START, GOAL, t).coordinates))
    axes.plot(
        *flow(jnp.linspace(0, 1, 60)).T,
        "k-",
        lw=4,
        alpha=0.25,
        label="flow (e-geodesic)",
    )
    for chart, marker in zip(CHARTS, "osD^", strict=True):
        axes.plot(*paths[chart].T, f"{marker}-", ms=4, lw=1, label=chart)
    axes.plot(
        *np.asarray(plain_gradient(0.05, 100)).T,
        "--",
        color="0.4",
        lw=1,
        label="plain gradient",
    )
    axes.plot(*GOAL.coordinates, "k*", ms=12)
    axes.set(
        xlabel="mean",
        ylabel="standard deviation",
        ylim=(0.3, 1.7),
        title=f"Natural-gradient steps of {h:g} towards N(1, 0.5²)",
    )
    axes.legend(fontsize=8, loc="upper right")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)
    plt.close(figure)
    print(f"paths in {FIGURE}")
    return paths


def main():
    return {
        "by_hand": by_hand(),
        "one_step": one_step(0.05),
        "landing": one_step(1.0),
        "orders": orders(),
        "paths": picture(0.05),
    }


if __name__ == "__main__":
    main()
