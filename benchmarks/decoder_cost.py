"""What K-FAC costs for a large decoder on many devices: arithmetic, no measurement.

The decoder has, in each of L blocks of width d, queries, keys, values and the output of
attention (d to d), and two layers d to f and f to d, all with biases; a table of V rows
that are looked up; and a head of V outputs, cut into equal layers of `head_width`
outputs, for a whole head's output factor has V² entries. Attention takes 4 T d
operations more of each row's forward pass, T positions in an example. Norms hold no
parameters. Stages are those of `benchmarks.cost_model`.

Seconds are operations over a published peak, and bytes over a published bandwidth, that
nothing reaches: the model's own products in bfloat16, the others in float32 at the
highest precision; a ring's all-reduce sends its bytes twice; nothing overlaps.

    python -m benchmarks.decoder_cost
    python -m benchmarks.decoder_cost --width 4096 --depth 32 --inverters 64
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from benchmarks.cost_model import WORD, Cost, Layer, Policy, step
from benchmarks.report import table
from benchmarks.timing import positive


class Decoder(NamedTuple):
    """Its sizes.

    Attributes:
        width: d.
        depth: L.
        inner: f.
        vocabulary: V, a multiple of `head_width`.
        head_width: outputs of each layer that the head is cut into.
        positions: T.
    """

    width: int = 2048
    depth: int = 16
    inner: int = 8192
    vocabulary: int = 51200
    head_width: int = 2048
    positions: int = 2048

    @property
    def layers(self) -> list[Layer]:
        """In their order."""
        d, f = self.width, self.inner
        block = [Layer(d, d)] * 4 + [Layer(d, f), Layer(f, d)]
        pieces, rest = divmod(self.vocabulary, self.head_width)
        if rest:
            raise ValueError(
                f"vocabulary={self.vocabulary} has to be a multiple of "
                f"head_width={self.head_width}, of which the head is made."
            )
        head = [Layer(d, self.head_width)] * pieces
        return [Layer(self.vocabulary, d, lookup=True), *block * self.depth, *head]

    @property
    def mixing(self) -> int:
        """Operations of attention for a row, forwards; all T positions are taken."""
        return 4 * self.positions * self.width * self.depth

    def costs(self, examples: int, policy: Policy) -> dict[str, Cost]:
        """Stage -> its cost.

        Args:
            examples: of the whole batch, each of T rows.
            policy: of the optimizer.
        """
        return step(self.layers, examples * self.positions, policy, self.mixing)


class Accelerator(NamedTuple):
    """Published peaks, in round numbers.

    Attributes:
        name: of the kind.
        low: operations a second in bfloat16.
        full: in float32 at the highest precision.
        link: bytes a second out of each device.
    """

    name: str
    low: float
    full: float
    link: float

    def computing(self, cost: Cost) -> float:
        """Seconds for the operations, at least.

        Args:
            cost: of the stage.
        """
        return (cost.operations - cost.in_full) / self.low + cost.in_full / self.full

    def sending(self, cost: Cost, stage: str) -> float:
        """Seconds for the bytes, at least.

        Args:
            cost: of the stage.
            stage: its name: inverses are gathered, all else is reduced.
        """
        return (1 if "inverse" in stage else 2) * cost.communicated / self.link

    def seconds(self, cost: Cost, stage: str) -> float:
        """Of both, one after the other.

        Args:
            cost: of the stage.
            stage: its name.
        """
        return self.computing(cost) + self.sending(cost, stage)


ACCELERATORS = (
    # NVIDIA H100 SXM: 989 and 67 TFLOP/s, a 400 Gbit/s port for each.
    Accelerator("H100-like", 1e15, 67e12, 50e9),
    # Google TPU v4: 275 TFLOP/s, six passes of bfloat16 for float32, 2400 Gbit/s.
    Accelerator("TPU v4-like", 275e12, 275e12 / 6, 300e9),
)
# Statistics every s, inverses every k steps, of every q-th example.
POLICIES = ((1, 1, 1), (10, 10, 1), (10, 10, 4), (100, 100, 1), (100, 100, 4))


def ratios(
    decoder: Decoder, examples: int, devices: int, inverters: int
) -> list[dict[str, float]]:
    """What K-FAC adds to the gradient, over the gradient, for each policy.

    Args:
        decoder: the model.
        examples: of the whole batch.
        devices: among which they are divided.
        inverters: devices that share out the inverses.

    Returns:
        s, k, q, "operations", "bytes", and the seconds on each accelerator by its name.
    """
    found = []
    for s, k, q in POLICIES:
        costs = decoder.costs(examples, Policy(devices, s, k, q, inverters))
        each = {
            stage: {
                "operations": cost.operations,
                "bytes": cost.communicated,
                **{a.name: a.seconds(cost, stage) for a in ACCELERATORS},
            }
            for stage, cost in costs.items()
        }
        row: dict[str, float] = {"s": s, "k": k, "q": q}
        for name, first in each["gradient"].items():
            row[name] = sum(one[name] for one in each.values()) / first - 1
        found.append(row)
    return found


def stages(
    decoder: Decoder, examples: int, devices: int, inverters: int
) -> dict[str, Cost]:
    """The cost of each stage in a step that has it, for ways of dividing the work.

    Args:
        decoder: the model.
        examples: of the whole batch.
        devices: among which they are divided.
        inverters: devices that share out the inverses.
    """
    whole = decoder.costs(examples, Policy(devices, 1, 1))
    quarter = decoder.costs(examples, Policy(devices, 1, 1, sub_batch=4))
    shared = {
        f"inverse over {n}": decoder.costs(examples, Policy(devices, 1, 1, 1, n))
        for n in (inverters, devices)
    }
    return {
        "gradient": whole["gradient"],
        "statistics": whole["statistics"],
        "statistics of 1/4": quarter["statistics"],
        "inverse on every device": whole["inverse"],
        **{name: costs["inverse"] for name, costs in shared.items()},
        "apply": whole["apply"],
    }


def state(decoder: Decoder) -> dict[str, int]:
    """Bytes of what is kept.

    Args:
        decoder: the model.
    """
    layers = decoder.layers
    factors = WORD * sum(layer.factor_entries for layer in layers)
    parameters = WORD * sum(layer.entries for layer in layers)
    kept = {"parameters": parameters, "last step": parameters}
    return kept | {"factors": factors, "inverses": factors}


def main(argv: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for field, default in Decoder._field_defaults.items():
        parser.add_argument(
            "--" + field.replace("_", "-"), type=positive, default=default
        )
    for field, default in (("examples", 1024), ("devices", 256), ("inverters", 32)):
        parser.add_argument("--" + field, type=positive, default=default)
    options = parser.parse_args(argv)
    decoder = Decoder(*(getattr(options, field) for field in Decoder._fields))
    sizes = options.examples, options.devices, options.inverters
    found = stages(decoder, *sizes)
    first = found["gradient"].operations
    rows = [
        (
            name,
            *(
                f"{x:.3g}"
                for x in (
                    c.operations / 1e12,
                    c.operations / first,
                    c.in_full / c.operations,
                    c.communicated / 1e9,
                )
            ),
        )
        for name, c in found.items()
    ]
    print(table(("stage", "10¹² operations", "/ gradient", "float32", "GB"), rows))
    rows = [
        [name]
        + [
            f"{1e3 * one.computing(c):.0f} + {1e3 * one.sending(c, name):.0f}"
            for one in ACCELERATORS
        ]
        for name, c in found.items()
    ]
    print("\nMilliseconds at the peaks, computing + sending:\n")
    print(table(("stage", *(one.name for one in ACCELERATORS)), rows))
    kept = state(decoder)
    rows = [
        (n, f"{b / 1e9:.2f}", f"{b / 1e9 / options.devices:.3f}")
        for n, b in kept.items()
    ]
    print("\n" + table(("kept", "GB on every device", "GB, spread"), rows))
    over = ratios(decoder, *sizes)
    rows = [
        [str(row[n]) for n in "skq"] + [f"{row[n]:.2f}" for n in list(row)[3:]]
        for row in over
    ]
    print("\nAdded by K-FAC, over the gradient's:\n\n" + table(list(over[0]), rows))
    return {"stages": found, "kept": kept, "ratios": over}


if __name__ == "__main__":
    main()
