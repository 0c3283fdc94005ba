"""Which tests are slow: those that were measured to be.

`durations.json` holds the CPU seconds of every case that takes more than a moment. A
case that takes `SLOW_SECONDS` is slow. Each test (a law, with its cases) has
`LAW_SECONDS` in the fast run: its quickest cases until these are spent, and one at
least of those that are not slow, of each file one in any case; the others are slow too.
Cases of one name in one file, and cases of a law that differ in one parameter, often
share what they compile, which the first of them pays: each counts as the dearest.
Much less remains with `--quickest`: of each law the quickest case, where that and the
fixtures of its file (`::@fixture`) count less than a moment; of each file one in any
case. Measure again with

    python -m pytest -n auto -m "" --measure

or a part of the suite in the same way: what was not run keeps its durations.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from pathlib import Path

import pytest

PATH = Path(__file__).with_name("durations.json")
SLOW_SECONDS = 1.3
LAW_SECONDS = 0.3
# Below this a duration is not worth a line.
MOMENT = 0.2


def law_of(nodeid):
    """The test without its case."""
    return nodeid.split("[")[0]


def file_of(nodeid):
    """The file of a test."""
    return nodeid.split("::")[0]


def shared(nodeid):
    """What a case has in common with others that may share its programs.

    Its name in its file, and its parameters (between hyphens) but one in its law.
    """
    law, bracket, case = nodeid.partition("[")
    if not bracket:
        return [nodeid]
    parts = case.removesuffix("]").split("-")
    but_one = [(law, i, *parts[:i], *parts[i + 1 :]) for i in range(len(parts))]
    return [(file_of(law), case), *(but_one if len(parts) > 1 else [])]


def prices(nodeids, seconds):
    """What each case counts as, by node id."""
    dearest = defaultdict(float)
    for nodeid in nodeids:
        for key in shared(nodeid):
            dearest[key] = max(dearest[key], seconds.get(nodeid, 0.0))
    return {case: max(dearest[key] for key in shared(case)) for case in nodeids}


def grouped(nodeids, key):
    """The node ids of one key together, a list of lists."""
    groups = defaultdict(list)
    for nodeid in nodeids:
        groups[key(nodeid)].append(nodeid)
    return groups.values()


def slow_cases(nodeids, seconds=None, longest=math.inf):
    """The node ids, of these, that the fast run leaves out.

    Args:
        nodeids: of every test that was collected.
        seconds: CPU seconds by node id; those that are stored unless given.
        longest: cases that take this many CPU seconds or more are left out, even where
            a law has no other, but for the quickest case of each file.
    """
    seconds = read() if seconds is None else seconds
    price = prices(nodeids, seconds)
    slow = {nodeid for nodeid in nodeids if seconds.get(nodeid, 0.0) >= longest}
    rank = lambda case: (case in slow, price[case], seconds.get(case, 0.0))
    for cases in grouped(nodeids, law_of):
        quickest, *others = sorted(cases, key=rank)
        spent = price[quickest]
        for case in others:
            spent += price[case]
            if spent > LAW_SECONDS:
                slow.add(case)
    return slow - {min(cases, key=rank) for cases in grouped(nodeids, file_of)}


def all_but_quickest(fixtures, seconds=None):
    """The node ids, of these, that `--quickest` leaves out.

    Args:
        fixtures: names of its fixtures, by node id of every test that was collected.
        seconds: CPU seconds by node id; those that are stored unless given.
    """
    seconds = read() if seconds is None else seconds
    price = prices(fixtures, seconds)
    for case, names in fixtures.items():
        made = (seconds.get(f"{file_of(case)}::@{name}", 0.0) for name in names)
        price[case] = max([price[case], *made])
    rank = lambda case: (price[case], seconds.get(case, 0.0))
    of_laws = (min(cases, key=rank) for cases in grouped(fixtures, law_of))
    kept = {case for case in of_laws if price[case] < MOMENT}
    kept |= {min(cases, key=rank) for cases in grouped(fixtures, file_of)}
    return fixtures.keys() - kept


def read(path=PATH):
    """Stored seconds by node id; the file has a line for each law."""
    laws = json.loads(path.read_text()) if path.exists() else {}
    return {law + case: s for law, cases in laws.items() for case, s in cases.items()}


def write(measured, path=PATH):
    """Store measured seconds; cases that did not run keep what was stored."""
    seconds = read(path) | {n: round(s, 1) for n, s in measured.items()}
    laws = defaultdict(dict)
    for nodeid in sorted(n for n, s in seconds.items() if s >= MOMENT):
        law = law_of(nodeid)
        laws[law][nodeid.removeprefix(law)] = seconds[nodeid]
    lines = [f"{json.dumps(law)}: {json.dumps(cases)}" for law, cases in laws.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _cpu_seconds():
    """Of the process and its children: other programs do not count."""
    return sum(os.times()[:4])


class Recorder:
    """Writes `durations.json` at the end of a run."""

    def __init__(self, config):
        self.writes = not hasattr(config, "workerinput")
        self.measured = {}
        self.properties, self.start = [], 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        """What fixtures do counts."""
        self.properties, self.start = item.user_properties, _cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        start = _cpu_seconds()
        try:
            return (yield)
        finally:
            if fixturedef.scope == "module":
                name = f"{fixturedef.baseid}::@{fixturedef.argname}"
                self.properties.append((name, _cpu_seconds() - start))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        try:
            return (yield)
        finally:
            spent = _cpu_seconds() - self.start
            item.user_properties.append((item.nodeid, spent))

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.measured |= dict(report.user_properties)

    def pytest_sessionfinish(self):
        if self.writes:
            write(self.measured)
