"""`natgrad report`: the page, and the verdict at its top."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import matplotlib.figure
import matplotlib.image
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad.__main__ import main
from natgrad.cli import report, session
from natgrad.cli.terminal import summary
from natgrad.compare import Entry, Race, Run, Verdict, plots
from natgrad.compare.comparison import judge, together
from natgrad.compare.runs import BASELINES, contender, line
from natgrad.compare.tables import Column
from natgrad.curvature import CURVATURES

USUAL = {"actual_loss_decrease": 0.1, "agrees": False, "uses_targets": False}


def row(name, cosine, ratio, seconds, **more):
    figures = {"name": name, "step_cosine": cosine, "step_norm_ratio": ratio}
    cost = SimpleNamespace(run_seconds=seconds)
    return SimpleNamespace(cost=cost, **figures, **USUAL | more)


LABELS = SimpleNamespace(verdict="they could have come from the model")
EXACT = row("exact", 1.0, 1.0, 0.5, agrees=True)


def test_the_quickest_that_follows_the_exact_step_is_recommended():
    rows = [
        EXACT,
        row("good", 0.95, 1.2, 0.1),
        row("better", 0.99, 1.0, 0.2),
        row("long", 0.99, 5.0, 0.01),
        row("labels", 0.99, 1.0, 0.001, uses_targets=True),
        row("poor", 0.2, 1.0, 0.002, actual_loss_decrease=-1.0),
    ]
    found = judge(rows, LABELS)
    assert "followed most cheaply by good" in found.headline
    assert "cosine 0.95" in found.headline
    text = " ".join(found.points)
    assert "If good is too slow: long" in text
    assert "Far from the exact step (cosine below 0.5): poor (0.20)." in text
    assert "A step of rate 1 raises the loss for poor" in text
    assert "labels is made of the data's own labels" in text
    assert "could have come from the model" in text


def test_where_nothing_follows_the_verdict_says_so():
    found = judge([row("a", 0.3, 1, 1), row("b", 0.6, 1, 2)], LABELS)
    assert "No approximation" in found.headline
    assert "b comes closest (cosine 0.60)" in found.headline
    nothing = judge([row("nan", float("nan"), 1, 1)], LABELS)
    assert "No approximation" in nothing.headline


def run(seconds, losses):
    return Run(0.1, seconds, losses, losses, losses)


def entry(name, seconds, losses, compiling=1.0):
    return Entry(name, (run(seconds, losses),), compiling)


LOST = entry("lost", [0, 1, 2], [2.0, 3.0, 9.0])


def verdict(*entries):
    return Race(entries, 2, 8, 1e-3).verdict()


def test_the_race_recommends_the_first_that_comes_within_a_tenth_of_the_lowest():
    slow = entry("dense", [0, 5, 9], [2.0, 0.5, 0.1])
    quick = entry("kfac", [0, 1, 2], [2.0, 0.9, 0.108])
    adam = entry("adam", [0, 0.1, 0.2], [2.0, 1.0, 0.2])
    found = verdict(slow, quick, adam, LOST)
    assert found.headline == (
        "To train, use kfac at rate 0.1: 0.108 nats after 2 steps; dense 0.100, adam "
        "0.200."
    )
    assert found.line == (
        "ng.natural_gradient(0.1, model, curvature=ng.curvature.KFAC, damping=0.001, "
        "trust_region=None)"
    )
    assert "at 0.110 nats, 3.0 s after the start" in found.points[0]
    assert "adam: 0.200 nats on held-out data, compiling 1.0 s" in found.points[3]
    assert "lost (1 of 1)" in found.points[-1]
    for text in (found.headline, found.line, *found.points):
        assert text in str(found)


def test_compiling_counts():
    quick = entry("kfac", [0, 1, 2], [2.0, 0.9, 0.1], 20.0)
    adam = entry("adam", [0, 5, 9], [2.0, 0.5, 0.1])
    assert verdict(quick, adam).line == "optax.adam(0.1)"
    slow = entry("adam", [0, 15, 29], [2, 1, 0.1])
    assert "use kfac" in verdict(quick, slow).headline


def test_a_constant_in_the_loss_makes_no_loss_near_the_lowest():
    low = entry("dense", [0, 5, 9], [1.4, 1.0, 0.95])
    high = entry("sgd", [0, 0.1, 0.2], [1.4, 1.1, 1.04])
    assert "use dense" in verdict(low, high).headline  # 1.04 is below 1.1 · 0.95


def test_where_every_run_fails_nothing_is_recommended():
    found = verdict(LOST)
    assert "every run of every optimizer failed" in found.headline
    assert not found.line


@pytest.mark.parametrize("name", [*CURVATURES, *BASELINES])
def test_the_line_to_paste_makes_what_was_raced(name):
    model = ng.Model(
        lambda p, x: x @ p, ng.families.Categorical(), example_inputs=np.ones((1, 2))
    )
    p, x, y = jnp.ones((2, 3)), jnp.arange(8.0).reshape(4, 2) / 8, jnp.arange(4) % 3
    scope = {"ng": ng, "optax": optax, "model": model}
    made = optax.with_extra_args_support(eval(line(name, 0.3, 0.01), scope))
    raced = contender(name, model, 0.01).make(0.3)

    def program(tx):
        update = lambda g: tx.update(g, tx.init(p), p, inputs=x, targets=y)[0]
        return str(jax.make_jaxpr(update)(p))

    assert program(made) == program(raced)


def test_verdicts_together_begin_with_the_first():
    parts = Verdict("one", ("a",), "line"), Verdict("two", ("b", "c"))
    assert together(*parts) == Verdict("one", ("a", "two", "b", "c"), "line")


def test_the_summary_has_each_name_once_the_best_first():
    rows = (EXACT, row("exact too", 1.0, 1.0, 0.5, agrees=True), row("far", 0.3, 1, 1))
    comparison = SimpleNamespace(rows=rows, reference="exact")
    race = Race((LOST, entry("sgd", [0, 1, 2], [2.0, 1.0, 0.5])), 2, 8, 1e-3)
    lines = summary(comparison, race)
    assert [line.name for line in lines] == ["sgd", "exact", "far", "lost"]
    assert [line.row for line in lines] == [None, EXACT, rows[2], None]
    lost, sgd = race.entries
    assert [line.entry for line in lines] == [sgd, None, None, lost]


class Links(HTMLParser):
    """What a page asks for, its text, and the tags that are open."""

    VOID = ("meta", "img", "br", "!doctype")  # what has no end

    def __init__(self, text):
        super().__init__()
        self.targets, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.targets += [v for k, v in attributes if k in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def check(text):
    """Well formed, and asks for nothing but itself."""
    links = Links(text)
    assert links.open == []
    inside = "data:image/png;base64,", "#"
    assert all(target.startswith(inside) for target in links.targets)
    assert "url(" not in text
    assert "<script" not in text
    assert "@import" not in text
    return links


def test_what_is_shown_is_escaped():
    columns = (Column("<b>\n&", lambda row: row, "a < b"),)
    whole = {"reference": "<f>", "rows": ["<script>"], "skipped": [("<n>", "<r>")]}
    parts = {"by_block": lambda: ["<block>"], "error_sources": ["<source>"]}
    comparison = SimpleNamespace(**whole, **parts)
    record = {
        "complete": False,
        "parameters": 1,
        "dtype": "<d>",
        "seconds": 1.0,
        "data": {"train_examples": 2, "test_examples": 3},
        "settings": {"damping": 1e-3, "seed": 0, "at_step": 3},
        "versions": {"natgrad": "<v>", "jax": "<j>"},
        "device": {"kind": "<k>"},
    }
    pictures = ("fidelity", "quadratic", "spectra", "blocks")
    tables = SimpleNamespace(FIGURES=(columns,) * 3, BLOCKS=columns, SOURCES=columns)
    text = report.render(
        {
            "title": "<t>",
            "record": record,
            "verdict": Verdict("<h>", ("<p>",)),
            "comparison": comparison,
            "race": None,
            **dict.fromkeys(("summary", "bars", "along"), ()),
            "winner": "",
            "seeds": 0,
            "tables": tables,
            "notes": [("<†>", "<note>")],
            "pictures": {name: ["data:image/png;base64,"] for name in pictures},
        }
    )
    words = " ".join(check(text).words)
    shown = "<t> <d> <v> <j> <k> <h> <p> <f> <n> <r> <script> <b> <†> <note>"
    shown += " <block> <source>"
    for piece in (*shown.split(), "a < b"):
        assert piece in words
    assert "Unfinished" in words
    assert "damping λ = 0.001" in words
    assert "Training" not in words


def test_panels_that_stand_alone_are_pictures_of_their_own():
    figure = matplotlib.figure.Figure(figsize=(4, 2))
    for axis, colour in zip(figure.subplots(1, 2), ("red", "blue"), strict=True):
        axis.set_facecolor(colour)
    images = [
        matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        for uri in report.pictures(figure)
    ]
    assert [image[60, 60, :3].tolist() for image in images] == [[1, 0, 0], [0, 0, 1]]
    together = matplotlib.figure.Figure(figsize=(4, 2))
    together.subplots(1, 2, sharey=True)
    assert len(report.pictures(together)) == 1


FEW = """
    report --quick --hidden 2 --at-step 1 --optimizers sgd --rates 1 --steps 2
    --approximations diagonal
""".split()  # noqa: SIM905 (as it is typed)


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(24, 2))
    path = tmp_path / "mine.npz"
    np.savez(path, inputs=inputs, targets=(inputs[:, 0] > 0).astype(int))
    return str(path)


@pytest.mark.slow
def test_the_page_holds_everything(tmp_path, capsys, source, monkeypatch):
    output = tmp_path / "out"
    draw = Mock(wraps=plots.quadratic, __name__="quadratic")
    monkeypatch.setattr(plots, "quadratic", draw)
    more = ["dense", "empirical", "--data", source, "--output", str(output)]
    assert main([*FEW, *more]) == 0
    assert sorted(p.name for p in output.iterdir()) == ["report.html", "report.json"]
    text = (output / "report.html").read_text()
    links = check(text)
    # Six panels of approximations, six of training, two of spectra; two are whole.
    assert sum(target.startswith("data:") for target in links.targets) == 16
    words = " ".join(links.words)
    record = json.loads((output / "report.json").read_text())
    assert record["complete"] is True
    assert draw.call_count == 1  # and the page was written after each stage
    assert record["verdict"]["headline"] in words
    assert all(point in words for point in record["verdict"]["points"])
    for name in ("dense", "diagonal", "empirical†", "sgd"):
        assert name in links.words
    assert "Unfinished" not in words
    assert record["verdict"]["headline"].split()[0] in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_report_says_that_it_is_unfinished(
    tmp_path, capsys, monkeypatch, source
):
    monkeypatch.setattr(session, "race", Mock(side_effect=KeyboardInterrupt))
    output = tmp_path / "out"
    assert main([*FEW, "--data", source, "--output", str(output)]) == 130
    text = (output / "report.html").read_text()
    check(text)
    assert "Unfinished" in text
    assert json.loads((output / "report.json").read_text())["complete"] is False
    assert "interrupted, kept" in capsys.readouterr().err
