"""Type aliases, and the letters that every shape comment and einsum string uses.

Letters:
    N   examples in a batch
    T   factors of one example's likelihood (positions of a sequence, pixels, ...)
    C   output coordinates of the model, that is coordinates of z
    K   score columns, see `natgrad.curvature.labels`
    P   parameters
    I O a layer's inputs and outputs

Loss and Fisher information are means over the batch, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.typing

Array = jax.Array
ArrayLike = jax.typing.ArrayLike

# A pytree of real floating arrays: what a user trains.
Params = Any
# Any pytree with a leading batch axis (see `Model.in_axes`), or None.
Inputs = Any
# A pytree of arrays whose structure depends on the curvature alone.
Statistics = Any
# A raw or typed JAX random key.
Key = Any
# apply(params, inputs) -> z [N, ...]
Apply = Callable[[Params, Inputs], Array]
