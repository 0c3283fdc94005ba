"""Every law has a case in the fast run, and little more than its share of time."""

from __future__ import annotations

import durations


def test_a_law_has_its_quickest_cases_until_its_time_is_spent():
    cases = ["t.py::law[a]", "t.py::law[b]", "t.py::law[c]", "t.py::law[d]"]
    seconds = dict(zip(cases, [0.25, 0.1, 9.0, 0.15], strict=True))
    assert durations.slow_cases(cases, seconds) == {cases[0], cases[2]}


def test_every_law_has_a_case_however_slow():
    cases = ["t.py::law[a]", "t.py::law[b]", "t.py::other"]
    seconds = dict(zip(cases, [30.0, 20.0, 10.0], strict=True))
    assert durations.slow_cases(cases, seconds) == {cases[0]}
    assert durations.slow_cases(cases, seconds, longest=20.0) == {cases[0], cases[1]}


def test_every_file_has_a_case_however_slow():
    cases = ["t.py::law[a]", "t.py::law[b]", "t.py::other", "u.py::other"]
    seconds = dict(zip(cases, [3.0, 4.0, 5.0, 6.0], strict=True))
    assert durations.slow_cases(cases, seconds, longest=1.0) == {cases[1], cases[2]}


def test_the_quickest_are_one_of_each_law_under_a_moment_and_one_of_each_file():
    laws = ["t.py::law[a]", "t.py::law[b]", "t.py::law[c]", "t.py::long", "t.py::used"]
    cases = dict.fromkeys([*laws, "u.py::law[a]", "u.py::law[b]"], ("of_function",))
    cases["t.py::used"] = ("made",)
    seconds = {"t.py::law[a]": 0.1, "t.py::long": 0.3, "t.py::@made": 0.2}
    seconds |= {"u.py::law[a]": 3.0, "u.py::law[b]": 2.0, "v.py::@of_function": 9.0}
    left_out = durations.all_but_quickest(cases, seconds)
    assert cases.keys() - left_out == {"t.py::law[b]", "u.py::law[b]"}


def test_a_case_counts_as_the_dearest_of_its_name_in_its_file():
    cases = [f"t.py::{law}[{case}]" for law in ("law", "cached") for case in "ab"]
    others = ["t.py::other", "u.py::law[a]", "u.py::law[b]"]
    seconds = {"t.py::law[a]": 3.0, "t.py::law[b]": 0.9, "t.py::other": 0.3}
    assert durations.slow_cases(cases + others, seconds) == {cases[0], cases[2]}
    # One that is too slow by itself is not the case that a law keeps.
    seconds = {"t.py::law[a]": 1.0, "t.py::law[b]": 2.5, "t.py::cached[a]": 4.0}
    assert durations.slow_cases(cases, seconds, longest=2.0) == {
        cases[1],
        cases[2],
    }


def test_new_cases_are_quick_until_they_are_measured():
    assert durations.slow_cases(["t.py::law[new]", "t.py::law[newer]"], {}) == set()


def test_a_case_counts_as_the_dearest_of_its_law_with_all_parameters_but_one():
    cases = [f"t.py::law[{c}]" for c in ("a-x", "a-y", "b-x", "b-y", "c")]
    # The first case with "a" paid for all of them.
    seconds = dict(zip(cases, [5.0, 0.0, 0.9, 0.0, 0.4], strict=True))
    assert durations.slow_cases(cases, seconds) == set(cases[:4])
    seconds = {cases[0]: 5.0, cases[2]: 0.9}
    assert durations.slow_cases(cases[:4], seconds) == set(cases[:3])


def test_a_partial_run_keeps_what_it_did_not_measure(tmp_path):
    path = tmp_path / "durations.json"
    durations.write({"t.py::law[a]": 3.0, "t.py::other": 4.04}, path)
    durations.write({"t.py::law[b]": 1.0, "t.py::law[c]": 0.01}, path)
    expected = {"t.py::law[a]": 3.0, "t.py::law[b]": 1.0, "t.py::other": 4.0}
    assert durations.read(path) == expected
    durations.write({"t.py::law[a]": 0.1}, path)
    assert durations.read(path) == {"t.py::law[b]": 1.0, "t.py::other": 4.0}
