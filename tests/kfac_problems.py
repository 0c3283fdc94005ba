"""Problems whose Fisher information is known, for K-FAC as a matrix."""

from __future__ import annotations

import jax

KEY = jax.random.PRNGKey(3)


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def dense(curvature, params, x, y=None):
    return jax.jit(lambda p, x: curvature.at(p, x, y, KEY).dense())(params, x)


FAST = {"xla_backend_optimization_level": 3}


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=FAST)


def temporary(function, *args):
    return compiled(function, *args).memory_analysis().temp_size_in_bytes


def products(program):
    text = program.as_text()
    return text.count(" dot(") + text.count('custom_call_target="__onednn$matmul')
