"""Held-out data: examples of a problem that nothing is trained on."""

from __future__ import annotations

import jax
import numpy as np

from benchmarks.training import Problem

SHARE = 5  # one in so many is held out


def divided(problem: Problem, in_order: bool = False) -> Problem:
    """The problem with a fifth of its examples held out, the same at every call.

    Those that have the inputs of an example of the rest are not held out, but left out.

    Args:
        problem: all of whose examples are independent but for their order.
        in_order: is the last fifth held out, as of a text, whose neighbours are alike?
    """
    count = len(problem.y)
    order = np.random.default_rng(0).permutation(count)
    if in_order:
        order = np.arange(count)
    rest, held = np.split(order, [count - count // SHARE])
    inputs = [np.asarray(leaf) for leaf in jax.tree.leaves(problem.x)]
    key = lambda i: b"".join(leaf[i].tobytes() for leaf in inputs)
    known = {key(i) for i in rest}
    held = [i for i in held if key(i) not in known]
    examples = problem.x, problem.y
    (x, y), unseen = (
        jax.tree.map(lambda leaf: leaf[np.array(rows)], examples)  # noqa: B023
        for rows in (np.sort(rest), np.sort(held))
    )
    return problem._replace(x=x, y=y, held=unseen)


def at_other_points(problem: Problem) -> Problem:
    """A network for Poisson's equation, held out at random points of the square."""
    draw, points = np.random.default_rng(0), problem.x
    x, edge = draw.uniform(size=points["x"].shape), np.asarray(points["boundary"])
    side = draw.integers(4, size=len(x))
    x[edge, side[edge] % 2] = side[edge] // 2
    x = jax.numpy.asarray(x, points["x"].dtype)
    return problem._replace(held=({**points, "x": x}, problem.y))
