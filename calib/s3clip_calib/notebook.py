"""What a calibration has measured so far, in a file beside the bundle: a killed one goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from s3clip_calib.fidelity import Fidelity


class Notebook:
    """Measured layers, by section: the type of bits and how ranges were taken. Use it as a context manager.

    The file is deleted by `finish`; one of other settings, or whose last line was cut, is not believed.

    Args:
        path: of the file; its folder must exist.
        key: tells the settings; what was measured under another key is dropped.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._found: dict[str, dict[str, Fidelity]] = {}
        self._read(key)
        fresh = path.with_name(f"{path.name}.part")  # until it is whole, the old one stays
        with fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"key": key}) + "\n")
            file.writelines(
                _line(section, layer, row)
                for section, rows in self._found.items()
                for layer, row in rows.items()
            )
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Notebook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, section: str) -> dict[str, Fidelity]:
        """Layers that were measured already."""
        return dict(self._found.get(section, {}))

    def add(self, section: str, layer: str, row: Fidelity) -> None:
        """Note one, on the disk at once."""
        self._found.setdefault(section, {})[layer] = row
        self._file.write(_line(section, layer, row))
        self._file.flush()

    def finish(self) -> None:
        """All is done: the file goes."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _read(self, key: str) -> None:
        try:
            first, *lines = self._path.read_text("utf-8").splitlines()
            if json.loads(first) != {"key": key}:
                return
            for line in lines:
                row = json.loads(line)
                self._found.setdefault(row["section"], {})[row["layer"]] = Fidelity(**row["fidelity"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # nothing yet, or a line that a kill cut in two: what was read before it holds


def _line(section: str, layer: str, row: Fidelity) -> str:
    return json.dumps({"section": section, "layer": layer, "fidelity": asdict(row)}) + "\n"
