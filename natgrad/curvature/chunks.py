"""How many examples at once: `chunk_size=` of `Gram` and of `MatrixFree`.

    None      all of them
    an int    so many: results are the same up to rounding
    "auto"    from the shapes alone: all, where what they need fits into
              `memory_budget` bytes, else as many as do

With examples on several devices a chunk has equally many of each, whose multiple is
taken (`natgrad.tree.chunks`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Float

from natgrad import layers, tree
from natgrad.model import Model, batch
from natgrad.model.batch import Batch, Example
from natgrad.model.residuals import Residuals
from natgrad.typing import Array, Params

ChunkSize = int | Literal["auto"] | None

# Bytes that "auto" fills: 2 GiB.
BUDGET = 2**31
# XLA may take more than is alive in program order: it hoists what weights alone decide
# out of loops, and keeps it. Measured were 0.7 to 1.25 times as much.
_MARGIN = 1.5


def check_chunk_size(of: Any, chunk_size: Any, memory_budget: Any) -> None:
    """Raise a ValueError unless these can be what they are called.

    Args:
        of: whose they are.
        chunk_size: an integer >= 1, "auto" or None.
        memory_budget: bytes, an integer >= 1.
    """
    name = type(of).__name__
    known = chunk_size is None or chunk_size == "auto"
    if not known and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(
            f"{name}(chunk_size=...) is a number of examples >= 1, 'auto' (as many as "
            f"fit into memory_budget bytes), or None for all; got {chunk_size!r}."
        )
    if not isinstance(memory_budget, int) or memory_budget < 1:
        raise ValueError(
            f"{name}(memory_budget=...) is a number of bytes, an integer >= 1; got "
            f"{memory_budget!r}."
        )


def chunk_size_of(of: Any) -> ChunkSize:
    """The curvature's chunk size; of groups of residuals "auto" is None.

    Args:
        of: a curvature with `model` and `chunk_size`.

    Raises:
        ValueError: a number of examples for groups of residuals.
    """
    size = of.chunk_size
    if not isinstance(of.model.apply, Residuals):
        return size
    if isinstance(size, int):
        raise ValueError(
            f"{type(of).__name__}(chunk_size={size}) takes examples along one axis, "
            "and groups of residuals have one each: leave chunk_size out."
        )
    return None


def fitting(of: Any, live_bytes: Callable[[int | None], int], count: int) -> int | None:
    """How many examples at once fit into the budget; None for all.

    Args:
        of: a curvature with `memory_budget`.
        live_bytes: what so many examples at once take: the largest of some phases, of
            which some grow evenly with them.
        count: N.

    Raises:
        ValueError: not even one example, on each device, fits.
    """
    budget, parts = of.memory_budget, tree.device_parts(count)
    if 2 * live_bytes(None) <= budget:  # XLA copies what is large
        return None
    own = count // parts

    def needed(size):
        return math.ceil(_MARGIN * live_bytes(size))

    def even(size):  # all chunks about as long
        return parts * -(-own // -(-own // max(1, min(own, size))))

    few, many = even(own // 4), even(own // 2)
    many_bytes = needed(many)
    slope = (many_bytes - needed(few)) / max(1, many - few)
    size = even(int(many + (budget - many_bytes) / max(1e-9, slope)) // parts)
    found = needed(size)
    if found <= budget:
        return size
    least = needed(parts)
    if least > budget:
        raise ValueError(
            f"{type(of).__name__}(chunk_size='auto', memory_budget={budget}): these "
            f"shapes take about {least} bytes with one example at a time. Give it "
            f"memory_budget={least} or more, or fewer examples a batch."
        )
    # Between these two the largest of lines is below the straight one.
    share = (budget - least) / (found - least)
    return even(int(parts + share * (size - parts)) // parts)


def depends_on_itself_alone(model: Model, given: Batch) -> bool:
    """Can each example go through the model without the others?

    Args:
        model: the model.
        given: a batch.
    """
    apply, axes = model.apply_real, model.in_axes
    found = layers.dependence(apply, given.params, given.inputs, axes)
    return found is layers.Dependence.NOTHING


class Linearized(NamedTuple):
    """A batch's outputs as a linear map of the parameters.

    Attributes:
        z: the outputs, [N, ...].
        examples: what else is known of the examples; arrays with an axis N.
        total: Σ_n ω_n.
        push: v -> J v, [N, ...].
        pull: u [N, ...] -> Jᵀ u, like the parameters.
    """

    z: Float[Array, "N ..."]
    examples: Example
    total: Float[Array, ""]
    push: Callable[[Params], Array]
    pull: Callable[[Array], Params]


def linearized(of: Any, given: Batch) -> Linearized:
    """The batch at once, linearised once for all products; or chunk by chunk for each.

    Args:
        of: a curvature with `model`, `chunk_size` and `memory_budget`.
        given: the batch.

    Raises:
        ValueError: a chunk size for examples that need each other.
    """
    model, size = of.model, chunk_size_of(of)
    if size is not None and not depends_on_itself_alone(model, given):
        if size != "auto":
            raise ValueError(
                f"{type(of).__name__}(chunk_size={size}) evaluates some examples at a "
                "time, and here an example's outputs depend on the others or on its "
                "place in the batch (batch statistics, one dropout key for all): leave "
                "chunk_size out."
            )
        size = None
    if size == "auto":

        def product_bytes(size):
            def product(given, v):
                linear = _linearized(model, given, size)
                return linear.pull(linear.push(v))

            return layers.live_bytes(product, given, given.params)

        count = batch.input_count(given.inputs, model.in_axes) or 1
        size = fitting(of, product_bytes, count)
    return _linearized(model, given, size)


def _linearized(model: Model, given: Batch, chunk_size: int | None) -> Linearized:
    if chunk_size is not None:
        return _in_chunks(model, given, chunk_size)
    outputs, examples, total = model.whole(*given)
    z, push = jax.linearize(outputs, given.params)
    transposed = jax.linear_transpose(push, given.params)
    return Linearized(z, examples, total, push, lambda u: transposed(u)[0])


def _in_chunks(model: Model, given: Batch, chunk_size: int) -> Linearized:
    """So many examples at once, which are evaluated again for each product."""
    rows, rebuild = batch.split_batch(given.inputs, model.in_axes)
    examples, total = model.examples(*given)
    parts = tree.device_parts(examples.weights.shape[0])

    def outputs(chunk):
        return lambda params: model.outputs(params, rebuild(chunk))

    def over_chunks(function, *more):
        operands = (rows, *more)
        return tree.map_over_chunks(
            lambda chunk: function(*chunk), operands, chunk_size, parts
        )

    def push(v):
        def of_chunk(chunk):
            return jax.jvp(outputs(chunk), (given.params,), (v,))[1]

        return over_chunks(jax.checkpoint(of_chunk))

    def pull(u):
        def of_chunk(chunk):
            rows, u = chunk
            return jax.vjp(outputs(rows), given.params)[1](u)[0]

        return tree.sum_over_chunks(of_chunk, (rows, u), chunk_size, parts)

    z = over_chunks(jax.checkpoint(lambda chunk: outputs(chunk)(given.params)))
    if examples.target is not None:
        examples = jax.vmap(model.labelled)(z, examples)
    return Linearized(z, examples, total, push, pull)
