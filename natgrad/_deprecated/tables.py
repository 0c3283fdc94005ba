"""What the names of the version before are now."""

from __future__ import annotations

# The module before -> where its names are now, the first that has them.
MODULES = {
    "adaptive": ("transforms.adaptive",),
    "arguments": ("transforms.validation",),
    "batch": ("model.batch", "model.targets", "curvature.sub_batch"),
    "blockwise": ("metrics.blockwise",),
    "damping": ("transforms.damping",),
    "eigenbasis": ("metrics.eigenbasis",),
    "errors": ("model.errors",),
    "health": ("transforms.health", "transforms.state"),
    "inference.ivon": ("inference.online_newton",),
    "inplace": ("control_flow",),
    "inverse": ("solvers.spd_inverse", "solvers.block_elimination"),
    "jacobian": ("solvers.score_jacobian",),
    "kronecker": (
        "metrics.kronecker",
        "metrics.kronecker.factors",
        "metrics.kronecker.factored_tikhonov",
    ),
    "krylov": ("solvers.conjugate_gradients",),
    "metric": ("metrics.base", "metrics.matrices", "tree"),
    "mirror": ("transforms.mirror_descent",),
    "observation": ("transforms.observation",),
    "pieces": ("solvers.jacobian_blocks",),
    "placeholders": ("model.placeholders", "tree"),
    "refresh": ("transforms.inverse_cache", "transforms.solve"),
    "sample_space": ("solvers.gram",),
    "scaling": ("transforms.scaling",),
    "spectral": ("solvers.spectral",),
    "spread": ("transforms.distributed_inverse",),
    "spring": ("transforms.spring",),
    "state": ("transforms.state", "transforms.statistics_update"),
    "transform": ("transforms.scale_by_curvature",),
    "upkeep": ("transforms.statistics_update",),
    "weights": ("model.weights",),
}
# The module or class -> {a name before: the name now, dotted if it is elsewhere}.
NAMES = {
    "compare": {"Effort": "Budget", "Yardstick": "Reference"},
    "compare.Reference": {
        "instruments": "setup",
        "reference": "name",
        "ruler": "computer",
    },
    "control_flow": {
        "any_member": "any_over_vmap",
        "cleared": "zeros_unless",
        "renewed": "cond_in_place",
        "renewed_in_turn": "twice_in_place",
    },
    "curvature.Curvature": {
        "fixing": "with_frozen",
        "following": "with_previous",
        "instantaneous": "requires_batch",
        "resolved": "specialize",
    },
    "curvature.EKFAC": {"kept_metric": "metric_from_statistics"},
    "curvature.KFAC": {"kept_metric": "metric_from_statistics"},
    "curvature.LayerDiagonal": {"kept_metric": "metric_from_statistics"},
    "curvature.SubBatch": {"fewest": "min_examples", "part": "subsample"},
    "curvature.sub_batch": {"check_every": "check_stride", "thinned": "subsample"},
    "curvature.summed.SummedCurvature": {
        "everywhere": "psum_over_devices",
        "local": "to_device_local",
    },
    "families.Family": {"has_nodes": "has_score_nodes", "nodes": "score_nodes"},
    "geometry": {
        "bending": "christoffel_contraction",
        "displaced": "retract_into_domain",
    },
    "layers": {"Diagonal": "DiagonalBlock", "Exact": "DenseBlock"},
    "metrics.blockwise": {
        "from_rows": "kron_matvec_low_rank",
        "sandwich": "kron_matvec",
    },
    "model.Model": {"fixing": "with_frozen"},
    "model.batch": {
        "check_every": "curvature.sub_batch.check_stride",
        "thinned": "curvature.sub_batch.subsample",
    },
    "solvers": {
        "KeptInverse": "CachedSolver",
        "Recalling": "StatefulSolver",
        "any_member": "control_flow.any_over_vmap",
        "mirrored": "solvers.dense.mirrored",
        "turns": "transforms.inverse_cache.stagger",
    },
    "solvers.CachedSolver": {
        "apply": "solve",
        "pieces": "num_blocks",
        "prepare": "factorize",
        "reading": "with_row_factors",
    },
    "solvers.StatefulSolver": {"first": "init"},
    "solvers.conjugate_gradients": {
        "Fixed": "FixedIterations",
        "Progress": "ModelDecrease",
        "Residual": "RelativeResidual",
    },
    "solvers.jacobian_blocks": {
        "Explicit": "DenseRows",
        "Factored": "LinearBlock",
        "Lookups": "EmbeddingBlock",
        "Piece": "JacobianBlock",
    },
    "transforms.distributed_inverse": {
        "Spread": "DistributedInverse",
        "shared_out": "assign_greedily",
    },
    "transforms.inverse_cache": {
        "Kept": "InverseCache",
        "check": "check_refresh",
        "nothing_kept": "init_inverse_cache",
    },
    "transforms.statistics_update": {"kept_up": "update_statistics_and_inverse"},
    "transforms.validation": {
        "checked": "validate_update",
        "part_of": "restrict_to_subtree",
    },
}
# Keywords before of natgrad.compare's functions, which a ComparisonSetup now takes.
SETUP = ("approximations", "reference", "damping", "step_size", "effort")
COMPARISON_KEYWORDS = {
    "compare": {"reference", "step_size", "effort"},
    "along": set(SETUP),
    "race": {"steps", "batch_size", "rates", "damping", "seed"},
}
# The class -> {an argument's name before: its name now}.
KEYWORDS = {"curvature.SubBatch": {"fewest": "min_examples"}}
# Optimizers that had `then=` and `sub_batch=`.
COMPOSED = ("kfac", "ekfac")
