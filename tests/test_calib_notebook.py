"""The notebook of a calibration: what a killed one has measured is not measured again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s3clip_calib.fidelity import Fidelity
from s3clip_calib.notebook import Notebook


def made_up(loss: float) -> Fidelity:
    return Fidelity(1 - loss, 1 - loss, 1 - loss, 1 - loss, 1.0, 1.0)


ROWS = {f"layer{i}": made_up(i / 7) for i in range(4)}


def write_notebook(path: Path, key: str = "k") -> None:
    with Notebook(path, key) as notebook:
        for name, row in ROWS.items():
            notebook.add("int8 mse None", name, row)
        notebook.add("fp8 max None", "layer0", made_up(0.9))


def test_a_notebook_remembers_by_section(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    write_notebook(path)
    for _ in range(2):  # opening it keeps all
        with Notebook(path, "k") as notebook:
            assert notebook.known("int8 mse None") == ROWS
            assert notebook.known("fp8 max None") == {"layer0": made_up(0.9)}
            assert notebook.known("int8 max 0.5") == {}
            notebook.known("int8 mse None").clear()  # a copy


def test_a_notebook_of_other_settings_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    write_notebook(path)
    with Notebook(path, "other") as notebook:
        assert notebook.known("int8 mse None") == {}
    with Notebook(path, "k") as notebook:
        assert notebook.known("int8 mse None") == {}


def test_a_line_that_was_cut_is_not_believed(tmp_path: Path) -> None:
    """Cut at many bytes: what stands before the broken line holds, and nothing else."""
    path = tmp_path / "notes.jsonl"
    with Notebook(path, "k") as notebook:
        for name in ("layer1", "layer2"):
            notebook.add("s", name, ROWS[name])
    data = path.read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    for size in sorted({*range(0, len(data), 11), *(end + i for end in ends for i in (-1, 0))}):
        path.write_bytes(data[:size])
        with Notebook(path, "k") as notebook:
            whole = sum(size >= end for end in ends) - 1  # without the key's line
            assert list(notebook.known("s")) == ["layer1", "layer2"][: max(whole, 0)], size
            notebook.add("s", "new", made_up(0.3))
        with Notebook(path, "k") as notebook:
            assert notebook.known("s")["new"] == made_up(0.3)


def test_a_killed_process_leaves_what_it_measured(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from s3clip_calib.fidelity import Fidelity\n"
        "from s3clip_calib.notebook import Notebook\n"
        "with Notebook(Path(sys.argv[1]), 'k') as notebook:\n"
        "    for i in range(3):\n"
        "        notebook.add('s', f'layer{i}', Fidelity(*[i / 8] * 6))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    with Notebook(path, "k") as notebook:
        assert notebook.known("s") == {f"layer{i}": Fidelity(*[i / 8] * 6) for i in range(3)}


def test_a_finished_notebook_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    with Notebook(path, "k") as notebook:
        notebook.add("s", "layer", made_up(0.1))
        assert path.exists()
        notebook.finish()
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]\n[]\n", '{"key": "k"}\n[1]\n', '{"key": "k"}\n{"section": 1}\n']
)
def test_a_file_that_is_no_notebook_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    with Notebook(path, "k") as notebook:
        assert notebook.known("s") == {}
    assert json.loads(path.read_text()) == {"key": "k"}
