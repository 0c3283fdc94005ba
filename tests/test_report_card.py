"""The report card: what losses amount to, a tiny problem from end to end, the page."""

from __future__ import annotations

import json

import jax
import numpy as np
import optax
import pytest

import benchmarks.drop_in.__main__ as drop_in
from benchmarks.drop_in import card, doctor, page, problems, running, stress
from benchmarks.drop_in.running import Cell


def cell(name, rate, *losses, note=""):
    return Cell(name, 32, 0.0, rate, 1, [*losses], 40, 1e-3, (2.0, 1.5), note)


def made_up(floor=1.0):
    """Adam gains 8 nats of 10, from 11 to 3, where no model goes below 1."""
    adam = [cell("adam", r, 11.0, loss) for r, loss in ((0.1, 5.0), (0.01, 3.0))]
    adam.append(cell("adam", 1.0, 11.0, np.nan))
    about = {
        "data": "made up",
        "parameters": 3,
        "steps": 40,
        "limit": 1.0,
        "environment": {},
    }
    return card.Sheet(floor, about | {"commits": []}, adam)


@pytest.mark.parametrize(
    ("loss", "ratio", "kind"),
    [
        (2.0, 0.5, "within 1"),
        (3.0, 1.0, "within 1"),
        (4.0, 1.5, "within 2"),
        (5.0, 2.0, "within 2"),
        (6.0, 2.5, "worse"),
        (7.5, 3.25, "not trained"),  # it gained 3.5 of Adam's 8
        (np.nan, np.inf, "not trained"),
        (np.inf, np.inf, "not trained"),
    ],
)
def test_classes_of_made_up_losses(loss, ratio, kind):
    sheet = made_up()
    found = cell("kfac", 0.3, 11.0, 9.0, loss)
    assert sheet.ratio(found) == ratio
    assert sheet.class_of(found) == kind
    slow = found._replace(note="too slow")
    assert sheet.ratio(slow) == np.inf
    assert sheet.class_of(slow) == "unfinished"


def test_diverged_is_above_twice_the_start():
    assert not stress.diverged(start=11.0, loss=20.0, floor=1.0)
    assert stress.diverged(start=11.0, loss=21.5, floor=1.0)
    assert stress.diverged(start=11.0, loss=np.nan, floor=1.0)


def test_a_momentum_is_given_to_what_has_one(monkeypatch):
    def takes(learning_rate, model, momentum=None):
        del learning_rate, model, momentum

    monkeypatch.setitem(running.NATURAL, "kfac", takes)
    monkeypatch.setitem(running.NATURAL, "spring", takes)
    assert running.extra_arguments("kfac", 0.9) == {"momentum": 0.9}
    assert running.extra_arguments("kfac", 0.0) == {}  # as it comes
    assert running.extra_arguments("spring", 0.9) is None  # its own is not a choice
    assert running.extra_arguments("kfac_adaptive", 0.9) is None
    assert running.settings("kfac", [0.1, "default"]) == [(0.1, (0.1,))]
    assert running.settings("kfac_adaptive", [0.1]) == [(None, ())]


def test_a_tiny_problem_from_end_to_end(tmp_path, monkeypatch, capsys):
    """Programs are cheap: the card's own arithmetic is what is tested here."""
    descent = lambda learning_rate, model: optax.sgd(learning_rate)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # of the other tests
    monkeypatch.setattr(running, "TUNED", {"adam": running.TUNED["adam"]})
    monkeypatch.setattr(drop_in, "TUNED", running.TUNED)
    monkeypatch.setitem(running.NATURAL, "kfac", descent)
    arguments = ["--problems", "logistic", "--optimizers", "kfac", "--batches", "32"]
    arguments += ["--rates", "0.1,0.3", "--momentum", "0", "--steps", "30"]
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        drop_in.main([*arguments, "--output", str(tmp_path / "after")])
    sheet = card.load(tmp_path / "after" / "logistic.json")
    adam = sheet.best("adam", 32, 1)
    assert len(sheet.cells) == 5 + 2
    np.testing.assert_allclose(adam.loss[0], np.log(2), rtol=1e-5)  # from zero
    assert len(adam.loss) == 1 + 2  # after 20 steps and the last
    assert adam.loss[-1] < 0.2
    printed = capsys.readouterr().out
    for found in card.cells_of(sheet, "kfac", 32, 0.0):
        ratio = sheet.ratio(found)
        assert ratio == pytest.approx(found.loss[-1] / adam.loss[-1])
        assert f"{found.rate:g}: {ratio:.3g}" in printed
    text = page.write(tmp_path, tmp_path)
    assert "| logistic |" in text
    assert (tmp_path / "report_card.md").read_text() == text
    assert (tmp_path / "images" / "report_card.png").stat().st_size > 1000


def test_advice_is_held_against_the_best_cells():
    sheet = made_up()
    for name, rate, loss in (
        ("kfac", 0.1, 2.0),
        ("kfac", 0.3, 1.1),
        ("gram", 0.3, 3.0),
    ):
        sheet.add(cell(name, rate, 11.0, loss))
    sheet.add(cell("spring", 0.3, 11.0, 1.0, note="too slow"))
    sheet.add(cell("muon", 0.1, 11.0, 1.4))
    says = lambda code: {"problem": "made up", "batch": 32, "code": code}
    codes = ("kfac(model=model)", "gram(model=model)", "gram(model=model, labels=x)")
    text = doctor.beside(map(says, codes), {"made up": sheet})
    # Above the floor of 1: Adam 2, kfac 1 as it comes, gram 2, muon 0.4.
    rows = [[one.strip() for one in r.split("|")[3:-1]] for r in text.splitlines()[2:5]]
    assert rows == [
        ["`kfac`", "0.5", "`kfac`", "1", "`muon`", "2.5"],
        ["`gram`", "1", "`kfac`", "2", "`muon`", "5"],
        ["`gram(model=model, labels=x)`", "–", "`kfac`", "–", "`muon`", "–"],
    ]
    assert "this library: 1 of 3. Of all, the tuned ones too: 0." in text
    other = [says(codes[0]) | {"batch": 64}]
    assert "of this library: 0 of 0." in doctor.beside(other, {"made up": sheet})


def test_made_up_cells_survive_their_file(tmp_path):
    sheet = made_up()
    sheet.add(cell("kfac", "default", 11.0, np.nan, note="too slow"))
    sheet.save(tmp_path / "one.json")
    found = card.load(tmp_path / "one.json")
    assert found.floor == 1.0
    assert json.dumps([*found.cells]) == json.dumps(
        [[*k] for k in sorted(sheet.cells, key=str)]
    )
    assert np.isnan(found.cells["kfac", 32, 0.0, "default", 1].loss[-1])


def test_floors_are_below_what_the_data_allow():
    """A law at the labels themselves, where it has a bound, is as good as can be."""
    counts = problems.poisson()
    y = np.asarray(counts.problem.y, np.float32)
    family = counts.problem.model.family
    for shift in (-0.1, 0.1):
        rates = np.log(np.maximum(y, 1e-6)) + shift
        away = -float(np.mean(jax.vmap(family.log_prob)(rates, counts.problem.y)))
        assert counts.floor < away
