"""Networks of flax nnx, flax linen and equinox as natgrad models.

    net = natgrad.from_nnx(module, natgrad.families.Categorical(), x[:1])
    tx = natgrad.kfac(model=net.curvature_model)
    inputs = {"x": x, "state": state}
    loss, grads = jax.value_and_grad(net.model.loss)(params, inputs, y)
    state = net.next_state(params, inputs)
    updates, opt_state = tx.update(grads, opt_state, params, inputs=inputs)

The frameworks are imported when a network of theirs is given, not before.
"""

from natgrad.integrations.equinox import from_equinox
from natgrad.integrations.linen import from_linen
from natgrad.integrations.network import Network
from natgrad.integrations.nnx import from_nnx

__all__ = ["Network", "from_equinox", "from_linen", "from_nnx"]
