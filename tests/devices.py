"""Steps on many devices beside the same steps on one; a program that prints JSON.

    python devices.py CHECK...           on the 8 devices that XLA_FLAGS makes of a CPU
    python devices.py I PORT CHECK...    process I of two, with 2 devices each

A check is mode:case:dtype, see MODES and CASES of `device_steps`. It reports

    difference  of the parameters after three steps, over their largest change
    compiled    how many programs were compiled by the first step, and after it
    moved       leaves of the state whose sharding is not what it was
    calls       how often the compiled step communicates, by kind
    square      whether a device ever holds an N×N matrix
"""

from __future__ import annotations

import json
import sys

import jax
from device_checks import draws, gradient_only, over, shares, wave_function
from device_steps import check, count_compilations
from hybrid_sharding import hybrid
from jax.sharding import AxisType


def main(arguments):
    jax.config.update("jax_enable_x64", True)
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    if arguments[0].isdigit():
        process, port, *arguments = arguments
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", 2, int(process))
        shape, names = (2, 2), ("host", "device")
    else:
        shape, names = (8,), ("data",)
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    report = {name: check(mesh, *name.split(":")) for name in arguments if ":" in name}
    for function in (draws, shares, over, gradient_only, wave_function, hybrid):
        if function.__name__ in arguments:
            report[function.__name__] = function(mesh)
    print(json.dumps(report | {"devices": jax.device_count()}, default=float))


if __name__ == "__main__":
    main(sys.argv[1:])
