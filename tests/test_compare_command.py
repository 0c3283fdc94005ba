"""The race of optimizers, the data, and the `natgrad compare` command."""

from __future__ import annotations

import errno
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.__main__ import main
from natgrad.cli import data, shared
from natgrad.compare import RaceSettings, race
from natgrad.compare.reference import Reference
from natgrad.compare.runs import BASELINES, DEFAULT, contender
from natgrad.curvature import CURVATURES


def apply(params, inputs):
    return inputs @ params["w"] + params["b"][None]


# The race ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regression():
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.normal(size=(32, 2)) * np.array([1.0, 10.0]))
    targets = (inputs @ jnp.asarray([[1.0], [-0.2]])) + 0.1
    params = {"w": jnp.zeros((2, 1)), "b": jnp.zeros(1)}
    return ng.Model(apply, ng.families.NormalMean()), params, inputs, targets


def test_race_finds_the_best_rate_and_excludes_what_diverges(regression):
    model, params, inputs, targets = regression
    done = []
    result = race(
        model,
        params,
        (inputs, targets),
        (inputs, targets),
        score=data.r_squared,
        names=("dense", "sgd"),
        settings=RaceSettings(steps=12, batch_size=32, rates=5, damping=1e-6),
        on_run=lambda entry: done.append(entry.name),
    )
    newton, sgd = result.entries
    assert done == ["dense"] * 5 + ["sgd"] * 5
    assert newton.best.learning_rate == 1
    assert newton.best.final_score == pytest.approx(1, abs=1e-6)
    assert sgd.failed
    assert sgd.best not in sgd.failed
    assert len(newton.runs) == len(sgd.runs)
    for run in (*newton.runs, *sgd.runs):
        assert len(run.train_loss) == len(run.seconds) == len(run.score) == 13
        assert run.train_loss[0] == pytest.approx(
            float(model.loss(params, inputs, targets))
        )
        assert np.all(np.diff(run.seconds) > 0)
    record = result.to_dict()["entries"][1]
    assert [run["failed"] for run in record["runs"]].count(True) == len(sgd.failed)


@pytest.mark.parametrize("name", [*BASELINES, *CURVATURES])
def test_grids_have_equal_size_and_ratio(regression, name):
    rates = contender(name, regression[0], 1e-3).rates(6)
    assert len(rates) == 6
    ratios = np.divide(rates[1:], rates[:-1])
    assert np.all((ratios > 2.9) & (ratios < 3.4))


@pytest.mark.parametrize("name", data.SOURCES)
def test_data_are_standardised_and_split_by_seed(name):
    one, again, other = (data.load(name, seed=seed) for seed in (0, 0, 1))
    inputs, targets = map(np.asarray, one.train)
    assert np.array_equal(inputs, again.train[0])
    assert not np.array_equal(inputs, other.train[0])
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-10)
    assert np.mean(inputs**2) == pytest.approx(1, rel=1e-6)
    assert len(one.test[1]) == round(0.25 * (len(one.test[1]) + len(targets)))


# The command ------------------------------------------------------------------------

FEW = """
    compare --quick --data wine --hidden 2 --steps 4 --rates 2 --at-step 2
    --approximations dense diagonal --optimizers sgd
""".split()  # noqa: SIM905 (as it is typed)
OUTPUTS = ["comparison.json", "fidelity.png", "training.png"]


@pytest.mark.slow
def test_command_writes_tables_json_and_pictures(tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    assert main([*FEW, "empirical", "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == OUTPUTS
    record = json.loads((output / "comparison.json").read_text())
    assert record["complete"] is True
    assert [row["name"] for row in record["fidelity"]["rows"]] == ["dense", "diagonal"]
    assert [entry["name"] for entry in record["training"]["entries"]] == [
        "sgd",
        "empirical",
    ]
    assert record["settings"]["seed"] == 0
    assert record["versions"]["jax"] == jax.__version__
    assert record["dtype"] == "float64"
    for name in OUTPUTS[1:]:
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr()
    assert max(map(len, shown.out.splitlines())) <= 80
    # Progress, on a busy machine, and nothing else.
    assert all(text[:3].strip("% ").isdigit() for text in shown.err.splitlines())
    last = shown.out.splitlines()[-24:]
    assert any(text.startswith("To train, use ") for text in last)
    assert sum(text.startswith(" sgd ") for text in shown.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("--data digit", "'digits'"),
        ("--model mpl", "'mlp'"),
        ("--approximations diagnal", "'diagonal'"),
        ("--optimizers addam", "'adam'"),
        ("--reference dence", "'dense'"),
        ("--model logistic --data diabetes", "Use mlp or linear"),
        ("--damping -1", "--damping"),
        ("--steps 0", "--steps"),
        ("--hidden 1000 --optimizers dense", "--hidden"),
        ("--hidden 1000000", "makes 75,000,010 parameters"),
        ("--seed x", "--seed"),
    ],
)
def test_wrong_arguments_give_one_line_and_code_2(
    tmp_path, capsys, arguments, suggestion
):
    code = main(["compare", "--output", str(tmp_path / "out"), *arguments.split()])
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("natgrad compare: error: ")
    assert shown.err.count("\n") == 1
    assert suggestion in shown.err
    assert not (tmp_path / "out").exists()


def test_an_unknown_command_gives_code_2(capsys):
    assert main(["compere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--version"]) == 0
    assert ng.__version__ in capsys.readouterr().out


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["compare", "--output", str(tmp_path / "file")]) == 1
    assert "not a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    assert main(["compare", "--output", ""]) == 2
    assert "--output is empty" in capsys.readouterr().err


def test_an_output_that_takes_no_files_is_refused_before_anything_is_computed(
    tmp_path, capsys, monkeypatch
):
    def full(**where):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared.tempfile, "TemporaryFile", full)
    assert main(["compare", "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert f"cannot write to {tmp_path / 'out'}: No space left" in shown
    assert shown.count("\n") == 1


def test_a_disk_that_fills_up_names_the_file(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*race\.json: No space left"):
        shared.write_atomically(tmp_path / "race.json", write)


def test_interrupted_comparison_keeps_finished_rows(tmp_path, capsys, monkeypatch):
    (tmp_path / "training.png").write_text("of an earlier run")
    measure = Reference.row

    def row(self, name):
        if name == "diagonal":
            raise KeyboardInterrupt
        return measure(self, name)

    monkeypatch.setattr(Reference, "row", row)
    assert main([*FEW, "--output", str(tmp_path)]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == OUTPUTS[:2]
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["complete"] is False
    assert [row["name"] for row in record["fidelity"]["rows"]] == ["dense"]
    assert record["training"] is None
    assert "interrupted, kept" in capsys.readouterr().err


def test_interrupted_before_anything_is_finished_writes_nothing(
    tmp_path, capsys, monkeypatch
):
    def row(self, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(Reference, "row", row)
    assert main([*FEW, "--output", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()
    assert "wrote nothing" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "comparison.json"
    shared.write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": None}

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        shared.write_atomically(path, write)
    assert json.loads(path.read_text()) == {"value": None}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("module", ["typer", "rich", "matplotlib", "sklearn"])
def test_a_missing_extra_says_what_to_install(tmp_path, capsys, monkeypatch, module):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*FEW, "--output", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "pip install 'natgrad[report]'" in shown
    assert shown.count("\n") == 1


# What --quick does without names; and a part of it, for regression.
PART = """
    --steps 4 --approximations kl_hessian matrix_free --optimizers sgd
""".split()  # noqa: SIM905 (as it is typed)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "more"), [("wine", []), ("diabetes", PART)])
def test_command_on_classification_and_regression(tmp_path, monkeypatch, source, more):
    """Of all that is registered, which here is what races and what is exact."""
    exact = {"kl_hessian", "matrix_free"}
    for name in CURVATURES.keys() - {*DEFAULT, *exact}:
        monkeypatch.delitem(CURVATURES, name)
    command = ["compare", "--quick", "--data", source, "--hidden", "2", "--rates", "1"]
    assert main([*command, "--output", str(tmp_path), *more]) == 0
    record = json.loads((tmp_path / "comparison.json").read_text())
    rows = {row["name"]: row for row in record["fidelity"]["rows"]}
    assert all(rows[name]["agrees"] for name in exact)
    raced = [entry["name"] for entry in record["training"]["entries"]]
    assert more or (list(rows), raced) == (list(CURVATURES), list(DEFAULT))
