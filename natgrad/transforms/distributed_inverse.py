"""Kept inverses whose pieces are factorised each on one device.

Data-parallel devices hold the same factors, and each would invert all of them. Here
every device factorises its share of the pieces (layers) and one all-gather hands all
results to all; the factorisations themselves communicate nothing. Pieces go, the
dearest first, to the device that has least to do; a piece that is larger than a fair
share bounds what is gained. The program contains each device's share as one branch of
a switch.

Source: Osawa et al. (2019), Large-scale distributed second-order optimization using
Kronecker-factored approximate curvature, section 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.typing import Array, Params


@final
@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices that share out what is made of operands that all hold, or its memory.

    Attributes:
        mesh: the devices, a `jax.sharding.Mesh`.
        axis_name: the axis of the mesh, or axes, over which the operands are replicated
            and the work shall be shared out.
    """

    mesh: jax.sharding.Mesh
    axis_name: str | tuple[str, ...] = "data"

    def __post_init__(self):
        unknown = [name for name in self._axes if name not in self.mesh.shape]
        if unknown:
            raise ValueError(
                f"axis_name= names axes of the mesh, {tuple(self.mesh.shape)}; got "
                f"{unknown}."
            )

    @property
    def _axes(self) -> tuple[str, ...]:
        name = self.axis_name
        return name if isinstance(name, tuple) else (name,)

    @property
    def _count(self) -> int:
        return math.prod(self.mesh.shape[name] for name in self._axes)

    def shardings(self, tx: optax.GradientTransformation, params: Params) -> Any:
        """Where an optimizer's state shall lie: beside the parameters, and cut up.

        Moments that are like the parameters lie as these do. Of other arrays with two
        axes or more (factors, inverses, bases) each device holds a part of the longest
        axis that the number of devices divides; what has none is on all devices.

        Args:
            tx: the optimizer.
            params: θ, or `jax.ShapeDtypeStruct`s like it, with shardings on the mesh.

        Returns:
            A tree like `tx.init(params)` of shardings, for `out_shardings` of
            `jax.jit(tx.init)` and of the step.

        Raises:
            ValueError: a parameter is not sharded over devices of the mesh.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            place = getattr(leaf, "sharding", None)
            if place is None or place.device_set != set(self.mesh.devices.flat):
                raise ValueError(
                    f"The parameter {jax.tree_util.keystr(path)} is to lie on the "
                    f"devices of the mesh {tuple(self.mesh.shape.items())}, got "
                    f"sharding {place}: put it there, jax.device_put(params, "
                    "jax.NamedSharding(mesh, PartitionSpec(...)))."
                )
        return optax.tree.map_params(
            tx,
            lambda _, place: place,
            jax.eval_shape(tx.init, params),
            jax.tree.map(lambda leaf: leaf.sharding, params),
            transform_non_params=lambda part: jax.tree.map(self._cut_up, part),
        )

    def _cut_up(self, leaf: jax.ShapeDtypeStruct) -> jax.NamedSharding:
        spec: list = [None] * len(leaf.shape)
        whole = [i for i, size in enumerate(leaf.shape) if size % self._count == 0]
        if whole and len(spec) > 1:
            spec[max(whole, key=lambda i: leaf.shape[i])] = self._axes
        return jax.NamedSharding(self.mesh, jax.sharding.PartitionSpec(*spec))

    def made(self, make: Callable, operands: Any, which: Sequence[int]) -> list[Any]:
        """The pieces of `which`, each made on one device.

        Args:
            make: (operands, numbers of pieces) -> those pieces, each a tree of arrays.
            operands: a tree of arrays, the same on all devices.
            which: numbers of the pieces.
        """
        if not len(which):
            return []
        shapes = [
            jax.eval_shape(lambda x, i=i: make(x, [i])[0], operands) for i in which
        ]
        shares = assign_greedily([_cost(shape) for shape in shapes], self._count)
        length = max(sum(_size(shapes[k]) for k in share) for share in shares)
        dtype = jnp.result_type(*jax.tree.leaves(shapes))

        def branch(share):
            def made(operands):
                mine = [which[k] for k in share]
                pieces = make(operands, mine) if mine else ()
                whole = jnp.concatenate(
                    [leaf.astype(dtype).reshape(-1) for leaf in jax.tree.leaves(pieces)]
                    or [jnp.zeros(0, dtype)]
                )
                whole = jnp.pad(whole, (0, length - whole.size))
                return tree.varying_like(whole, operands)

            return made

        def gathered(operands):
            device = jax.lax.axis_index(self.axis_name)
            # Where JAX follows what differs between devices, say that each reads the
            # operands for itself (or derivatives would not be summed over devices), and
            # that the result is the same on all.
            given = tree.varying_like(operands, device)
            mine = jax.lax.switch(device, [branch(share) for share in shares], given)
            to = "invarying" if tree.varying(device) else "varying"
            return jax.lax.all_gather(mine, self.axis_name, to=to)

        inside = set(self._axes) <= set(jax.sharding.get_abstract_mesh().manual_axes)
        if not inside:
            everywhere = jax.sharding.PartitionSpec()
            gathered = jax.shard_map(
                gathered, mesh=self.mesh, in_specs=everywhere, out_specs=everywhere
            )
        rows = gathered(operands)
        found: list = [None] * len(shapes)
        for row, share in zip(rows, shares, strict=True):
            start = 0
            for k in share:
                found[k], start = _cut(shapes[k], row, start)
        return found


@final
@dataclasses.dataclass(frozen=True)
class DistributedInverse(CachedSolver):
    """A kept inverse with its factorisations spread over the devices of a mesh.

    Attributes:
        solver: what to factorise and how, such as
            `natgrad.kronecker.FactoredTikhonov()`.
        mesh: the devices, a `jax.sharding.Mesh`.
        axis_name: the axis of the mesh, or axes, over which the factors are replicated
            and shall be shared out.
    """

    solver: CachedSolver
    mesh: jax.sharding.Mesh
    axis_name: str | tuple[str, ...] = "data"

    def __post_init__(self):
        if not isinstance(self.solver, CachedSolver):
            raise ValueError(
                "DistributedInverse shares out what a CachedSolver factorises, such as "
                f"natgrad.kronecker.FactoredTikhonov(), got {self.solver!r}."
            )
        _ = self._devices  # checks the axes

    @property
    def _devices(self) -> Devices:
        return Devices(self.mesh, self.axis_name)

    def num_blocks(self, metric: Any) -> int:
        """As many as the solver's.

        Args:
            metric: F.
        """
        return self.solver.num_blocks(metric)

    def factorize(
        self, metric: Any, damping: DampingLike, which: Sequence[int]
    ) -> Sequence[Any]:
        """The factorisations of some pieces, each made on one device.

        Args:
            metric: F.
            damping: λ >= 0, in the units of F.
            which: numbers of the pieces.
        """

        def factorized(operands, mine):
            metric, damping = operands
            return self.solver.factorize(metric, damping, mine)

        operands = metric, resolve_damping(damping, metric)
        return self._devices.made(factorized, operands, which)

    def solve(
        self,
        metric: Any,
        factorizations: Sequence[Any],
        v: Params,
        damping: DampingLike,
    ) -> Solution:
        """As the solver does.

        Args:
            metric: F.
            factorizations: of all pieces; they may be old.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        return self.solver.solve(metric, factorizations, v, damping)

    def residuals(
        self, metric: Any, factorizations: Sequence[Any], damping: DampingLike
    ) -> Array:
        """As the solver does.

        Args:
            metric: F.
            factorizations: of all pieces.
            damping: λ >= 0, in the units of F.
        """
        return self.solver.residuals(metric, factorizations, damping)


def assign_greedily(costs: Sequence[float], devices: int) -> list[list[int]]:
    """The jobs of each device: the dearest first, to whoever has least to do.

    Args:
        costs: of each job.
        devices: how many there are.

    Returns:
        The numbers of the jobs of each device.

    Source: Graham (1969), Bounds on multiprocessing timing anomalies.
    """
    shares: list[list[int]] = [[] for _ in range(devices)]
    load = [0.0] * devices
    for job in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = min(range(devices), key=lambda d: load[d])
        shares[least].append(job)
        load[least] += costs[job]
    return shares


def _cost(shape: Any) -> float:
    """d³ for each factorised matrix [..., d, d], up to a constant."""
    return sum(
        leaf.size * max(leaf.shape[-1:], default=1) for leaf in jax.tree.leaves(shape)
    )


def _size(shape: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shape))


def _cut(shape: Any, row: Array, start: int) -> tuple[Any, int]:
    """A tree of arrays read off a vector from `start` on, and where it ends."""
    leaves = []
    for leaf in jax.tree.leaves(shape):
        piece = row[start : start + leaf.size]
        leaves.append(piece.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(jax.tree.structure(shape), leaves), start
