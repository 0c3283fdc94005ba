"""Type aliases, and the letters that every shape comment and einsum string uses.

Letters:
    N   examples in a batch
    T   factors of one example's likelihood (positions of a sequence, pixels, ...)
    C   output coordinates of the model, that is coordinates of z
    K   score columns, see `natgrad.curvature.labels`
    M   rows of the score Jacobian, K·N
    P   parameters
    L   matrices of one captured block: its stacked layers and batch axes, flattened
    I O a layer's inputs and outputs

Shapes stand in annotations as `jaxtyping` writes them: `Float[Array, "N C"]` is a
floating array [N, C], `Float[Array, "*lead I O"]` has any number of axes before I and
O, and `Float[Array, ""]` is a scalar. They are documentation: nothing checks them when
the library runs.

Loss and Fisher information are means over the batch, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.typing
import numpy as np
from jaxtyping import Float, Num, PRNGKeyArray, PyTree, Shaped

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike

# What a user trains: a tree of real floating arrays.
Params: TypeAlias = PyTree[Float[Array | np.ndarray, "..."]]
# Inputs of a batch: a tree of arrays with a leading axis of examples, but for those
# that `Model.in_axes` marks with None; or None.
Inputs: TypeAlias = PyTree[Shaped[ArrayLike, "..."]]
# What an estimate keeps: a tree of arrays whose structure depends on the curvature
# alone.
Statistics: TypeAlias = PyTree[Num[Array, "..."]]
# A JAX random key: typed, of shape (), or raw, uint32 of shape [2] or [4].
Key: TypeAlias = PRNGKeyArray
# apply(params, inputs) -> z [N, ...]
Apply: TypeAlias = Callable[[Params, Inputs], Array]
