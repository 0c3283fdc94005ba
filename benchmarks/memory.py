"""How much memory does a training step need, over Adam's, and what for?

A step (gradient, update, new parameters; parameters and state donated) is compiled, and
XLA's own analysis read: `temporary` is scratch space, `kept` what stays between steps
(parameters and state), `peak` both and the batch. Beside them the sizes that explain
K-FAC's: factors [I, I] and [O, O] of the layers, kept once as statistics and once as
inverses.

    python -m benchmarks.memory --models classifier --output results
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import optax

import natgrad as ng
from benchmarks.problems import MODELS
from benchmarks.report import table, write
from benchmarks.timing import environment

RATE, DAMPING = 1e-3, 1e-2
OPTIMIZERS = {
    "adam": lambda _: optax.with_extra_args_support(optax.adam(RATE)),
    "kfac": lambda model: ng.kfac(RATE, model, damping=DAMPING),
    "ekfac": lambda model: ng.ekfac(RATE, model, damping=DAMPING),
    "gram": lambda model: ng.gram(RATE, model, damping=DAMPING),
    "kfac_adaptive": lambda model: ng.kfac_adaptive(model),
}
SIZES = ("temporary", "kept", "peak")
MEGABYTE = 1e6


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS]
    )
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": environment(), "models": {}}
    text = [f"# {__doc__.splitlines()[0]}", ""]
    for name in options.models:
        found = memory(*MODELS[name](), options.optimizers)
        report["models"][name] = found
        text += [section(name, found), ""]
        print(text[-2], flush=True)
        write(options.output, "memory", report, "\n".join(text))
    return report


def memory(model, params, x, y, names: list[str]) -> dict[str, Any]:
    """Bytes of each optimizer's step, and the shapes of K-FAC's factors."""
    found, factors = {}, []
    for name in ["adam", *(n for n in names if n != "adam")]:
        tx = OPTIMIZERS[name](model)
        state = jax.eval_shape(tx.init, params)
        found[name] = of_step(tx, model, params, state, x, y)
        if name == "kfac":
            factors = squares((state[0].statistics, state[0].inverse))
    for sizes in found.values():
        sizes["over_adam"] = {n: sizes[n] / found["adam"][n] for n in SIZES}
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "batch_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves((x, y))),
        "optimizers": found,
        "kfac_factors": factors,
        "kfac_factor_bytes": sum(f["bytes"] * f["count"] for f in factors),
    }


def of_step(tx, model, params, state, x, y) -> dict[str, Any]:
    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        batch = {"inputs": x, "targets": y, "value": value, "value_fn": model.loss}
        updates, state = tx.update(gradient, state, params, **batch)
        return optax.apply_updates(params, updates), state

    whole = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x, y)
    analysis = whole.compile().memory_analysis()
    temporary = analysis.temp_size_in_bytes
    kept = analysis.output_size_in_bytes
    held = kept + analysis.argument_size_in_bytes - analysis.alias_size_in_bytes
    return {"temporary": temporary, "kept": kept, "peak": held + temporary}


def squares(kept) -> list[dict[str, Any]]:
    """The square matrices in there: factors, and the inverses kept of them."""
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for leaf in jax.tree.leaves(kept):
        if leaf.ndim >= 2 and leaf.shape[-1] == leaf.shape[-2]:
            size = leaf.size * leaf.dtype.itemsize
            entry = found.setdefault(leaf.shape, {"count": 0, "bytes": size})
            entry["count"] += 1
    return [{"shape": list(shape), **entry} for shape, entry in found.items()]


def section(name: str, found: dict[str, Any]) -> str:
    megabytes = lambda count: f"{count / MEGABYTE:.2f}"
    heads = ("optimizer", "temporary MB", "kept MB", "peak MB", "peak / Adam")
    heads += ("temporary / Adam",)
    rows = [
        (
            optimizer,
            *(megabytes(sizes[n]) for n in SIZES),
            f"{sizes['over_adam']['peak']:.2f}",
            f"{sizes['over_adam']['temporary']:.2f}",
        )
        for optimizer, sizes in found["optimizers"].items()
    ]
    lines = [
        f"## {name}",
        "",
        f"{found['parameters']} parameters ({megabytes(found['parameter_bytes'])} MB), "
        f"batch {megabytes(found['batch_bytes'])} MB.",
        "",
        table(heads, rows),
    ]
    if found["kfac_factors"]:
        shapes = ", ".join(
            f"{f['count']} of {'×'.join(map(str, f['shape']))}"
            for f in found["kfac_factors"]
        )
        total = megabytes(found["kfac_factor_bytes"])
        lines += ["", f"K-FAC's factors and inverses: {shapes}: {total} MB."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
