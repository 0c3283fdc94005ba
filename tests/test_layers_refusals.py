"""Refusals, fallbacks and declarations: what is not understood is never silent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from layer_problems import N, X, Z, close, statistics

import natgrad
from natgrad import layers
from natgrad.layers import capturing


def test_large_weights_that_are_not_understood_are_an_error_with_the_line_to_paste():
    p = {"deep": {"w": zoo.normal(0, 3, 350), "v": zoo.normal(1, 350, 4)}}
    apply = lambda p, x: x @ jnp.exp(p["deep"]["w"]) @ jnp.sinh(p["deep"]["v"])
    line = "declared={'deep/v': natgrad.layers.DiagonalBlock(), "
    line += "'deep/w': natgrad.layers.DiagonalBlock()}"
    with pytest.raises(ValueError, match=r"not understood.*deep/w.*exp") as error:
        layers.capture(apply, p, X)
    assert line in str(error.value)
    declared = eval(line.removeprefix("declared="), {"natgrad": natgrad})  # as pasted
    captured = layers.capture(apply, p, X, declared=declared)
    assert [block.kind for block in captured.blocks] == ["diagonal", "diagonal"]


def test_large_complex_weights_say_what_to_use_in_place_of_their_factors():
    """By a cast, and as a pair of real ones."""
    p = {"w": zoo.normal(0, 3, 350), "v": zoo.normal(1, 3, 350)}
    for apply in (
        lambda p, x: jnp.abs(x.astype(complex) @ p["w"].astype(complex) + x @ p["v"]),
        lambda p, x: jnp.abs(x.astype(complex) @ jax.lax.complex(p["w"], p["v"])),
    ):
        message = r"w' of shape \(3, 350\).*would be complex; use Gram, Dense or Matrix"
        with pytest.raises(layers.NotCapturedError, match=message):
            layers.capture(apply, p, X)


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: x @ jnp.exp(p["w"]),
        lambda p, x: x @ (p["w"] - jnp.mean(p["w"], axis=0, keepdims=True)),
        lambda p, x: (x @ p["w"]) * jnp.sum(x[:, None] * p["w"].T[None], axis=2),
        lambda p, x: jnp.abs((x + 1j * x**2) @ p["w"].astype(complex)),
    ],
    ids=["exp", "standardised", "in both orders", "complex"],
)
def test_a_small_weight_that_is_not_understood_is_an_exact_block_by_name(apply):
    p = {"w": zoo.normal(0, 3, 2)}
    found = statistics(apply, p, X, Z, {"G": layers.Expand()})[1]["w"]["G"]["G"]
    one = lambda x, z: jax.grad(lambda p: jnp.sum(apply(p, x[None]) * z[None]))(p)["w"]
    each = jax.vmap(one)(X, Z).reshape(N, -1)
    close(found, each.T @ each)
    assert "w: exact block, not understood" in layers.report(apply, p, X)


@pytest.mark.parametrize("treatment", [layers.DenseBlock(), layers.DiagonalBlock()])
def test_a_declared_subtree_has_the_per_example_gradients(treatment):
    p = {"deep": {"w": zoo.normal(0, 3, 2), "c": zoo.normal(1, 2)}}
    apply = lambda p, x: x @ jnp.exp(p["deep"]["w"]) * p["deep"]["c"][None]
    wanted = {"G": layers.Expand(), "squares": layers.Squares()}
    declared = {"deep": treatment}
    blocks, found = statistics(apply, p, X, Z, wanted, declared=declared)
    kinds = {layers.DenseBlock(): "exact", layers.DiagonalBlock(): "diagonal"}
    assert blocks["deep"].kind == kinds[treatment]
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


GRADIENT = {"gradient": layers.Gradient()}


def test_a_declaration_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="names no parameter"):
        layers.capture(
            zoo.mlp, zoo.mlp_params(), X, declared={"w9": layers.DenseBlock()}
        )


def test_uses_that_disagree_about_inputs_and_outputs_are_an_error():
    p, x = {"w": zoo.normal(0, 40, 40)}, jnp.ones((2, 40))
    apply = lambda p, x: (x @ p["w"]) * jnp.sum(x[:, None] * p["w"][None], axis=2)
    with pytest.raises(ValueError, match="disagree"):
        layers.capture(apply, p, x)


def test_a_custom_derivative_that_changes_the_gradient_is_not_inlined():
    dense = jax.custom_vjp(lambda x, w: x @ w)
    dense.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 2.0 * r[0].T @ g)
    )
    captured = layers.capture(
        lambda p, x: dense(x, p["w"]), {"w": zoo.normal(0, 3, 2)}, X
    )
    assert "derivative of its own" in captured.blocks[0].reason


def test_the_proof_catches_a_use_that_was_missed(monkeypatch):
    from natgrad.layers import dense

    rows = dense.DenseUse.rows
    wrong = lambda self, operands, scale, g: rows(self, operands, scale, 1.01 * g)
    monkeypatch.setattr(dense.DenseUse, "rows", wrong)
    with pytest.raises(ValueError, match="do not account for its gradient"):
        layers.capture(zoo.mlp, zoo.mlp_params(), jnp.ones((7, 3)))
    with layers.verify(False):  # what was found, but not computed
        captured = layers.capture(zoo.mlp, zoo.mlp_params(), jnp.ones((7, 3)))
    assert captured.proven.startswith("by the trace")
    with pytest.raises(ValueError, match="do not account for its gradient"):
        layers.report(zoo.mlp, zoo.mlp_params(), jnp.ones((7, 3)))


def test_nothing_is_computed_unasked():
    p, token = {"w": zoo.normal(0, 3, 2)}, capturing._VERIFYING.set(False)
    try:  # as without `verify`
        # No other test captures, and so proves, this program.
        captured = layers.capture(lambda p, x: x @ jnp.exp(p["w"] / 7), p, X)
    finally:
        capturing._VERIFYING.reset(token)
    assert captured.proven.startswith("by the trace")


def test_blocks_by_hand_are_right_where_examples_interact():
    p = {"w": zoo.normal(0, 3, 2)}
    centred = lambda p, x: (x - jnp.mean(x, axis=0, keepdims=True)) @ jnp.exp(p["w"])
    blocks, found = statistics(centred, p, X, Z, GRADIENT)
    assert isinstance(blocks["w"], layers.DeclaredBlock)
    expected = (X - X.mean(0, keepdims=True)).T @ Z * np.exp(p["w"])
    close(found["w"]["gradient"].reshape(3, 2), expected)


@pytest.mark.parametrize("lost", ["dot_general", "tanh", "add"])
def test_the_trace_alone_shows_a_way_around_the_uses(monkeypatch, lost):
    from natgrad.layers import step

    monkeypatch.setattr(step, "IGNORED", {lost})
    used = {
        "dot_general": lambda p, x: x @ p["w"],
        "tanh": lambda p, x: x @ jnp.tanh(p["w"]),
        "add": lambda p, x: x @ (p["w"] + 1.0),
    }
    with layers.verify(False), pytest.raises(ValueError, match="reaches the outputs"):
        layers.capture(used[lost], {"w": zoo.normal(0, 5, 3)}, jnp.ones((2, 5)))


def test_what_a_function_reads_from_python_counts_with_its_value_of_now():
    class Net:
        scale, rule = 1.0, staticmethod(lambda t: t)

        def apply(self, p, x):
            @jax.custom_vjp
            def dense(x, w):
                return x @ w

            dense.defvjp(
                lambda x, w: (x @ w, (x, w)),
                lambda r, g: (g @ r[1].T, self.rule(r[0].T @ g)),
            )
            return self.scale * dense(x, p)

    net, x, p = Net(), jnp.ones((4, 2)), jnp.ones((2, 1))
    apply = net.apply  # one function object, which JAX may have traced before
    gradient = lambda: statistics(apply, p, x, jnp.ones((4, 1)), GRADIENT)[1]
    close(gradient()[""]["gradient"], 4 * np.ones((2, 1)))
    net.scale = 3.0
    close(gradient()[""]["gradient"], 12 * np.ones((2, 1)))
    net.rule = lambda g: 2 * g  # no longer the derivative of a product
    assert isinstance(layers.capture(net.apply, p, x).blocks[0], layers.DeclaredBlock)


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


def test_a_loop_whose_steps_depend_on_each_other_says_that_examples_were_lost():
    p = {"w": zoo.normal(0, 3, 2)}
    memory = lambda p, x: jax.lax.scan(
        lambda total, x: (total + x @ p["w"], total), jnp.zeros(2), x
    )[1]
    shuffled = lambda p, x: jax.lax.fori_loop(
        0,
        x.shape[0],
        lambda i, z: z.at[(i + 1) % N].set(x[i] @ p["w"]),
        jnp.zeros((x.shape[0], 2)),
    )
    for apply in (memory, shuffled):
        assert "example axis could not be followed" in layers.report(apply, p, X)


@pytest.mark.parametrize(
    "moved",
    [
        lambda w: jax.lax.cond(jnp.ones(()) > 0, lambda: w, lambda: -w),
        jax.checkpoint(lambda w: w.T.T),
        lambda w: jax.lax.scan(lambda c, _: (c, w), 0, None, length=1)[1][0],
        lambda w: jax.lax.scan(lambda c, _: (w, None), 0 * w, None, length=1)[0],
    ],
    ids=["cond", "checkpoint", "scan", "carry"],
)
def test_a_parameter_that_comes_out_as_it_went_in_is_named(moved):
    p = {"w": zoo.normal(0, 3, 2)}
    captured = layers.capture(lambda p, x: x @ moved(p["w"]), p, X)
    assert "comes out as it went in" in captured.blocks[0].reason


def test_a_parameter_under_stop_gradient_is_left_uncovered():
    p = zoo.mlp_params()
    frozen = lambda p, x: zoo.mlp({**p, "w1": jax.lax.stop_gradient(p["w1"])}, x)
    captured = layers.capture(frozen, p, X)
    assert captured.uncovered == ("w1",)


def test_factors_that_dwarf_their_parameter_are_refused_before_they_are_made():
    shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
    apply = lambda p, x: x @ p["w"]
    with layers.verify(False):
        captured = layers.capture(apply, {"w": shape(30_000, 2)}, shape(4, 30_000))
        wide = layers.capture(apply, {"w": shape(20_000, 20_000)}, shape(4, 20_000))
    with pytest.raises(ValueError, match=r"'w'.*3\.353 GiB.*234\.4 KiB.*Diagonal"):
        layers.Expand().zero(captured.blocks[0])
    jax.eval_shape(lambda: layers.Expand().zero(wide.blocks[0]))  # only twice as large


def test_a_parameter_without_entries_is_in_no_block():
    p = {"w": zoo.normal(0, 3, 2), "none": jnp.zeros((0, 2))}
    apply = lambda p, x: x @ p["w"] + x[:, :0] @ p["none"]
    blocks, found = statistics(apply, p, X, Z)
    assert list(blocks) == ["w"]
    close(found["w"]["expand"]["A"], X.T @ X)
