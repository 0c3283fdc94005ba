"""Curvatures: which approximation of the Fisher information, over which labels.

`CURVATURES` maps a name to a function model -> Curvature. Tests, the comparison and the
benchmarks iterate over it: a new approximation is one file and one line here.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from natgrad.curvature.automatic import Automatic, GramOfTheBatch, OfTheBatch
from natgrad.curvature.automatic_diagonal import AutomaticDiagonal
from natgrad.curvature.base import Curvature
from natgrad.curvature.block_diagonal import BlockDiagonal
from natgrad.curvature.centred import Centred
from natgrad.curvature.constant import Constant
from natgrad.curvature.delegate import Delegate
from natgrad.curvature.dense import Dense
from natgrad.curvature.diagonal import Diagonal
from natgrad.curvature.ekfac import EKFAC
from natgrad.curvature.gathered import DataSet
from natgrad.curvature.gram import Gram, GramBlocks
from natgrad.curvature.kfac import KFAC
from natgrad.curvature.kfoc import KFOC
from natgrad.curvature.kl_hessian import KLHessian
from natgrad.curvature.labels import (
    Empirical,
    Exact,
    Labels,
    Sampled,
    ScoreColumns,
)
from natgrad.curvature.layer_diagonal import LayerDiagonal
from natgrad.curvature.matrix_free import MatrixFree, WarmStart
from natgrad.curvature.over import DataAverage, Progress
from natgrad.curvature.preconditioners import Identity, Jacobi, Kronecker, Nystrom
from natgrad.curvature.saving import load, save
from natgrad.curvature.sketched import ExactIfFew, Sketched
from natgrad.curvature.sub_batch import SubBatch
from natgrad.model import Model

Entry = TypeVar("Entry")

CURVATURES: dict[str, Callable[[Model], Curvature]] = {
    "kl_hessian": KLHessian,
    "dense": Dense,
    "block_diagonal": BlockDiagonal,
    "diagonal": Diagonal,
    "layer_diagonal": LayerDiagonal,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "kfoc": KFOC,
    "gram": Gram,
    "gram_blocks": GramBlocks,
    "matrix_free": MatrixFree,
    "sampled": lambda model: Dense(model, Sampled(1)),
    "empirical": lambda model: Dense(model, Empirical()),
}


def by_name(name: str) -> Callable[[Model], Curvature]:
    """The entry of CURVATURES called `name`; a ValueError lists what there is."""
    return choose(CURVATURES, name, "curvature")


def choose(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of `table` called `name`.

    Args:
        table: name -> entry.
        name: what is asked for.
        kind: what an entry is, for the message.

    Raises:
        ValueError: for an unknown name, with the closest one and all of them.
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"There is no {kind} called {name!r}.{hint} Known: {', '.join(table)}."
    )


__all__ = [
    "CURVATURES",
    "EKFAC",
    "KFAC",
    "KFOC",
    "Automatic",
    "AutomaticDiagonal",
    "BlockDiagonal",
    "Centred",
    "Constant",
    "Curvature",
    "DataAverage",
    "DataSet",
    "Delegate",
    "Dense",
    "Diagonal",
    "Empirical",
    "Exact",
    "ExactIfFew",
    "Gram",
    "GramBlocks",
    "GramOfTheBatch",
    "Identity",
    "Jacobi",
    "KLHessian",
    "Kronecker",
    "Labels",
    "LayerDiagonal",
    "MatrixFree",
    "Nystrom",
    "OfTheBatch",
    "Progress",
    "Sampled",
    "ScoreColumns",
    "Sketched",
    "SubBatch",
    "WarmStart",
    "by_name",
    "load",
    "save",
]
