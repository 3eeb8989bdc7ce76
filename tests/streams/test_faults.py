"""The twenty faults, as tests. `pytest -m faults -n 4` runs the short ones side by side: they mostly wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.faults import LONG, SHORT, Fault, make_bench, of_one
from streams.machine_faults import NotHere
from streams.outcome import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("faults"))


def survive(fault: Fault, bench: Bench, folder: Path) -> None:
    try:
        outcome = fault.run(of_one(bench, folder))
    except NotHere as error:
        pytest.skip(str(error))
    print(f"{fault.number} {fault.name}", *outcome.figures, sep="\n    ")
    assert not outcome.broken


@pytest.mark.faults
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: f"{fault.number:02}")
def test_short(fault: Fault, bench: Bench, tmp_path: Path) -> None:
    survive(fault, bench, tmp_path)


@pytest.mark.faults_long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("fault", LONG, ids=lambda fault: f"{fault.number:02}")
def test_long(fault: Fault, bench: Bench, tmp_path: Path) -> None:
    survive(fault, bench, tmp_path)
