"""How the derived quantities of a family are computed, in words."""

from __future__ import annotations

from typing import Any


def described(family: Any, kl: str, columns: str) -> dict[str, str]:
    """What `Family.provenance` says.

    Args:
        family: whose methods are given or inherited.
        kl: how the divergence is found.
        columns: how score columns are, where there are no `score_nodes`.

    Returns:
        {quantity: "given", or how it is found}.
    """
    if "estimated" in columns:
        columns += ", drawn for each example and step"
    defaults = {
        "score_nodes": family._otherwise,
        "score": "autodiff of log_prob",
        "fisher": "Hessian of kl" + ("" if kl == "given" else f" ({kl})"),
    }
    how = {
        name: "given" if family._gives(name) else default
        for name, default in defaults.items()
    }
    columns = "given" if family._gives("score_nodes") else columns
    return {"kl": kl, "columns": columns} | how
