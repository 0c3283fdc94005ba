"""What a K-FAC step costs by layer sizes, devices and refresh policy, on paper.

For dense layers of I inputs (i = I + 1 with the bias) and O outputs, n rows of the
batch on each of D devices, statistics every s steps of every q-th example, inverses
every k steps, whole layers shared out over E devices:

    gradient     6 n I O, and 2 n I O less for the first layer
    statistics   [4 n I O, 2 for the first, + 2 n (i² + O²)] / (q s)
    inverse      [e(i) + e(O)] / k, of the layers of the device that has most to do,
                 e(d) products of the elimination, and LAPACK's
    apply        2 i² O + 2 i O²

operations a device and step. Bytes between devices: the gradient's 4 i O in each step,
the factors' 4 (i² + O²) every s, and where inverses are shared out, every k, E times
those of the longest share, to which the others are padded. Kept: parameters, factors,
inverses. A lookup's A is a diagonal, and looking up costs nothing. Not in it: what is
elementwise, labels, the trust region's forward passes, momentum. A device's rows are
taken as its share of the batch.

`--check` holds each stage against XLA's count for a program of a small network: of
operations, per device, and of the bytes that all-reduces and all-gathers hand round.

    python -m benchmarks.cost_model --layers 784 1000 500 --batch 256 --devices 8
    XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python -m benchmarks.cost_model --check
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.problems import classified, dense_apply, dense_layers
from benchmarks.report import table
from benchmarks.timing import positive
from natgrad.curvature import KFAC, Sampled
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.solvers import block_elimination
from natgrad.transforms.distributed_inverse import DistributedInverse, assign_greedily

WORD = 4  # bytes of a float32


class Layer(NamedTuple):
    """A dense layer with a bias, or a table of rows that are looked up.

    Attributes:
        inputs: I.
        outputs: O.
        lookup: a table of I rows, without a bias.
    """

    inputs: int
    outputs: int
    lookup: bool = False

    @property
    def entries(self) -> int:
        """Of its parameters."""
        return (self.inputs + (not self.lookup)) * self.outputs

    @property
    def moment_entries(self) -> int:
        """Of the factors that are sums of products, A and G or G alone."""
        return (0 if self.lookup else (self.inputs + 1) ** 2) + self.outputs**2

    @property
    def factor_entries(self) -> int:
        """Of A and G."""
        return self.moment_entries + self.inputs * self.lookup

    @property
    def forwards(self) -> int:
        """Operations of its product with a row."""
        return 0 if self.lookup else 2 * self.inputs * self.outputs

    @property
    def inverting(self) -> float:
        """Operations of the inverses of its factors."""
        own = elimination(self.outputs)
        return own if self.lookup else own + elimination(self.inputs + 1)

    @property
    def applying(self) -> int:
        """Operations of A⁻¹ V G⁻¹."""
        side = self.outputs + (0.5 if self.lookup else self.inputs + 1)
        return int(2 * self.entries * side)


class Policy(NamedTuple):
    """How often what is renewed, and where.

    Attributes:
        devices: D, among which the batch is divided.
        statistics: s, in steps.
        inverses: k, in steps.
        sub_batch: q.
        inverters: E.
    """

    devices: int = 1
    statistics: int = 5
    inverses: int = 10
    sub_batch: int = 1
    inverters: int = 1


class Cost(NamedTuple):
    """Of a stage, in one step on one device, averaged over the steps.

    Attributes:
        operations: multiplications and additions.
        communicated: bytes that are reduced over devices or gathered from them.
        in_full: of the operations, those always in float32 at the highest precision.
    """

    operations: float
    communicated: float = 0.0
    in_full: float = 0.0


def step(
    layers: Sequence[Layer], batch: int, policy: Policy, mixing: float = 0.0
) -> dict[str, Cost]:
    """Stage -> its cost.

    Args:
        layers: in their order.
        batch: rows: examples times positions.
        policy: of the optimizer.
        mixing: operations of products between activations, of a row's forward pass.
    """
    rows = batch / policy.devices
    reduced = policy.devices > 1
    products = [rows * layer.forwards for layer in layers]
    # The forward pass and one to the first layer, through both sides of what mixes.
    back = 2 * sum(products) - products[0] + 3 * rows * mixing
    renewed = policy.sub_batch * policy.statistics
    moments = 2 * rows * sum(layer.moment_entries for layer in layers) / renewed
    factors = [layer.factor_entries for layer in layers]
    costs = [layer.inverting for layer in layers]
    shares = assign_greedily(costs, policy.inverters)
    inverses = max(sum(costs[i] for i in share) for share in shares) / policy.inverses
    longest = max(sum(factors[i] for i in share) for share in shares)
    gathered = policy.inverters * longest * (policy.inverters > 1)
    applied = sum(layer.applying for layer in layers)
    entries = sum(layer.entries for layer in layers)
    return {
        "gradient": Cost(back + sum(products), WORD * reduced * entries),
        "statistics": Cost(
            back / renewed + moments,
            WORD * reduced * sum(factors) / policy.statistics,
            moments,
        ),
        "inverse": Cost(inverses, WORD * gathered / policy.inverses, inverses),
        "apply": Cost(applied, 0.0, applied),
    }


def kept(layers: Sequence[Layer]) -> int:
    """Bytes on every device: parameters, the last step, factors and inverses.

    Args:
        layers: in their order.
    """
    return 2 * WORD * sum(layer.entries + layer.factor_entries for layer in layers)


def elimination(size: int, lapack: float = 4 / 3) -> float:
    """Operations of the inverse of a factor, with those of LAPACK for small blocks.

    Args:
        size: d.
        lapack: operations over d³ of a Cholesky factorisation (1/3) and of the inverse
            of the factor (1, as XLA takes it, without use of zeros); 0 leaves them out.
    """
    return _eliminated(size, lapack, root=False)


def _eliminated(size: int, lapack: float, root: bool) -> float:
    """As `natgrad.solvers.block_elimination`, product by product."""
    if size <= block_elimination.SMALL:
        return (2 + lapack) * size**3
    half = math.ceil(size / 2)
    rest = size - half
    wide, narrow = 2 * rest * half * half, 2 * rest * rest * half
    own = 2 * wide + narrow  # V, S, T
    own += narrow + wide  # the corner and the first block
    own += narrow * root
    return own + _eliminated(half, lapack, True) + _eliminated(rest, lapack, root)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--layers", type=positive, nargs="+", default=[784, 512, 512, 10]
    )
    parser.add_argument("--batch", type=positive, default=256)
    for field, default in Policy._field_defaults.items():
        option = "--" + field.replace("_", "-")
        parser.add_argument(option, type=positive, default=default)
    parser.add_argument("--check", action="store_true", help="against XLA's counts")
    options = parser.parse_args(argv)
    if options.check:
        found = check([64, 96, 48, 10], 512)
        heads = ("stage", "model", "XLA", "model / XLA")
        rows = [
            (name, f"{ours:.4g}", f"{theirs:.4g}", f"{ours / theirs:.3f}")
            for name, (ours, theirs) in found.items()
        ]
        print(f"{jax.device_count()} devices\n\n{table(heads, rows)}")
        return found
    layers = [Layer(*pair) for pair in itertools.pairwise(options.layers)]
    policy = Policy(*(getattr(options, field) for field in Policy._fields))
    costs = step(layers, options.batch, policy)
    rows = [
        (n, f"{c.operations:.3e}", f"{c.communicated:.3e}") for n, c in costs.items()
    ]
    print(table(("stage", "operations", "bytes between devices"), rows))
    print(f"\nkept on every device: {kept(layers):.3e} bytes")
    return {name: cost._asdict() for name, cost in costs.items()}


def check(sizes: Sequence[int], batch: int) -> dict[str, tuple[float, float]]:
    """What the model and XLA say of the stages, on all devices that there are.

    Args:
        sizes: of the layers, none beyond what LAPACK inverts.
        batch: a multiple of the devices.
    """
    devices = jax.device_count()
    layers = [Layer(*pair) for pair in itertools.pairwise(sizes)]
    costs = step(layers, batch, Policy(devices, 1, 1, inverters=devices))
    x = jax.random.normal(jax.random.PRNGKey(1), (batch, sizes[0]))
    model, params, x, y = classified(dense_apply, dense_layers(sizes), x)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    curvature, solver = KFAC(model, Sampled(1)), FactoredTikhonov()
    key, damping = jax.random.PRNGKey(0), jnp.float32(1e-2)
    metric = jax.jit(curvature.at)(params, x, None, key)
    pieces = range(solver.num_blocks(metric))
    inverses = jax.jit(lambda m: tuple(solver.factorize(m, damping, pieces)))
    applied = jax.jit(lambda m, kept, v: solver.solve(m, kept, v, damping).value)
    gradient = jax.jit(jax.grad(model.loss))
    estimated = jax.jit(lambda p, x: curvature.estimate(p, x, None, key))
    programs = {
        "gradient": gradient.lower(params, x, y),
        "statistics": estimated.lower(params, x),
        "apply": applied.lower(metric, inverses(metric), params),
    }
    found = {}
    for name, lowered in programs.items():
        program = lowered.compile()
        theirs = float(program.cost_analysis()["flops"])
        found[name] = (costs[name].operations, theirs)
        if costs[name].communicated:
            handed = bytes_of(program.as_text(), "all-reduce")
            found[f"{name}, bytes"] = (costs[name].communicated, handed)
    if devices > 1:
        spread = DistributedInverse(solver, mesh)
        shared = jax.jit(lambda m: tuple(spread.factorize(m, damping, pieces)))
        handed = bytes_of(shared.lower(metric).compile().as_text(), "all-gather")
        found["inverse, bytes"] = (costs["inverse"].communicated, handed)
    return found


def bytes_of(text: str, collective: str) -> float:
    """The bytes of the results of the collectives of one kind in a compiled program.

    Args:
        text: the program.
        collective: its name, as "all-reduce".
    """
    found = re.findall(rf"= (.*?) {collective}(?:-start)?\(", text)
    shapes = re.findall(r"[fs]32\[([\d,]*)\]", " ".join(found))
    sizes = [[int(n) for n in shape.split(",") if n] for shape in shapes]
    return float(WORD * sum(math.prod(size) for size in sizes))


if __name__ == "__main__":
    main()
