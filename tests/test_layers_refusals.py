"""Refusals, fallbacks and declarations: what is not understood is never silent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from layer_problems import N, X, Z, close, statistics

from natgrad import layers


def test_a_weight_that_is_not_understood_is_an_error_that_names_it():
    p = {"deep": {"w": zoo.normal(0, 3, 3)}}
    with pytest.raises(ValueError, match=r"deep/w.*exp.*declared"):
        layers.capture(lambda p, x: x @ jnp.exp(p["deep"]["w"]), p, X)


@pytest.mark.parametrize("treatment", [layers.Exact(), layers.Diagonal()])
def test_a_declared_subtree_has_the_per_example_gradients(treatment):
    p = {"deep": {"w": zoo.normal(0, 3, 2), "c": zoo.normal(1, 2)}}
    apply = lambda p, x: x @ jnp.exp(p["deep"]["w"]) * p["deep"]["c"][None]
    wanted = {"G": layers.Expand(), "squares": layers.Squares()}
    declared = {"deep": treatment}
    blocks, found = statistics(apply, p, X, Z, wanted, declared=declared)
    assert blocks["deep"].kind == type(treatment).__name__.lower()
    each = np.stack(
        [
            np.concatenate(
                [
                    np.ravel(leaf)
                    for leaf in jax.tree.leaves(
                        jax.grad(
                            lambda p, n=n: jnp.sum(apply(p, X[n : n + 1]) * Z[n][None])
                        )(p)
                    )
                ]
            )
            for n in range(N)
        ]
    )
    factor = found["deep"]["G"]["G"]
    if blocks["deep"].kind == "exact":
        close(factor, each.T @ each)
    else:
        close(factor[:, 0, 0], (each**2).sum(0))
    close(found["deep"]["squares"].reshape(-1), (each**2).sum(0))


def test_a_vector_that_is_not_understood_falls_back_and_is_named():
    p = {"w": zoo.normal(0, 3, 2), "t": zoo.normal(1)}
    apply = lambda p, x: (x @ p["w"]) * jnp.exp(p["t"])
    captured = layers.capture(apply, p, X)
    block = next(b for b in captured.blocks if b.name == "t")
    assert isinstance(block, layers.DeclaredBlock)
    assert "t: exact block, not understood: exp" in layers.table(captured, p)


def test_a_declaration_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="names no parameter"):
        layers.capture(zoo.mlp, zoo.mlp_params(), X, declared={"w9": layers.Exact()})


def test_uses_that_disagree_about_inputs_and_outputs_are_an_error():
    p = {"w": zoo.normal(0, 3, 3)}
    apply = lambda p, x: (x @ p["w"]) * jnp.sum(x[:, None] * p["w"][None], axis=2)
    with pytest.raises(ValueError, match="disagree"):
        layers.capture(apply, p, X)


def test_a_custom_derivative_that_changes_the_gradient_is_not_inlined():
    dense = jax.custom_vjp(lambda x, w: x @ w)
    dense.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 2.0 * r[0].T @ g)
    )
    with pytest.raises(ValueError, match="derivative of its own"):
        layers.capture(lambda p, x: dense(x, p["w"]), {"w": zoo.normal(0, 3, 2)}, X)


def test_the_proof_catches_a_use_that_was_missed(monkeypatch):
    from natgrad.layers import dense

    rows = dense.DenseUse.rows
    wrong = lambda self, operands, scale, g: rows(self, operands, scale, 1.01 * g)
    monkeypatch.setattr(dense.DenseUse, "rows", wrong)
    apply = lambda p, x: zoo.mlp(p, x)
    with pytest.raises(ValueError, match="do not account for its gradient"):
        layers.capture(apply, zoo.mlp_params(), X)


def test_a_use_without_examples_refuses_what_needs_them():
    p = {"w": zoo.normal(0, 3, 2)}
    captured = layers.capture(lambda p, x: x @ p["w"], p, X, in_axes=None)
    with pytest.raises(ValueError, match="no example axis"):
        captured.pull({"reduce": layers.Reduce()}, p, X)


def test_a_loop_over_the_batch_says_that_examples_were_lost():
    p = {"w": zoo.normal(0, 3, 2)}
    apply = lambda p, x: jnp.stack([row @ p["w"] for row in x])
    captured = layers.capture(apply, p, X)
    assert not captured.blocks[0].separate
    assert "example axis" in layers.table(captured, p)
    with pytest.raises(ValueError, match=r"'w'.*example"):
        captured.pull({"squares": layers.Squares()}, p, X)


def test_a_parameter_under_stop_gradient_is_left_uncovered():
    p = zoo.mlp_params()
    frozen = lambda p, x: zoo.mlp({**p, "w1": jax.lax.stop_gradient(p["w1"])}, x)
    captured = layers.capture(frozen, p, X)
    assert captured.uncovered == ("w1",)


def test_a_constant_entry_by_entry_mask_on_a_weight_is_refused_by_name():
    p, mask = {"w": zoo.normal(0, 3, 2)}, jnp.eye(3, 2)
    with pytest.raises(ValueError, match="entry by entry"):
        layers.capture(lambda p, x: x @ (p["w"] * mask), p, X)
