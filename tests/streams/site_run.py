"""The running program, as an operator sees it: its page, its files, its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.lab import end_with_parent, free_port, wait_until

_COMMAND = [sys.executable, "-c", "from s3clip_runtime.cli.run import main; main(prog_name='s3clip-run')"]

START_S = 60
"""Longest wait for the page of a run on a busy machine."""


class SiteRun:
    """`s3clip-run --site` over some cameras; ends with the block.

    Args:
        folder: of the site file and all outputs; must be the run's own.
        bundle: folder of a bundle.
        cameras: name to address.
        more: further TOML, such as an output; comes before the cameras.
        events: where the events go.
        environment: added to that of this process.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        cameras: Mapping[str, str],
        *,
        more: str = "",
        events: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "run.log"
        self.events_path = events or folder / "events.jsonl"
        self._port = free_port()
        site = [
            f'bundle = "{bundle}"', 'device = "cpu"', "threads = 1", "[page]",
            f'listen = "127.0.0.1:{self._port}"', "[outputs.events]", f'path = "{self.events_path}"', more,
        ]  # fmt: skip
        for name, url in cameras.items():
            site += ["[[cameras]]", f'name = "{name}"', f'url = "{url}"', 'platform = "ground"']
        self.site_path = folder / "site.toml"
        self.site_path.write_text("\n".join(site) + "\n")
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, "--site", str(self.site_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    def ready(self) -> Self:
        """Wait for the page.

        Raises:
            TimeoutError: the message ends in the log.
        """
        try:
            wait_until("status page", self._answers, START_S, 0.2)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; log: {self.log()[-2000:]}") from error
        return self

    def all_live(self) -> Self:
        """Wait until frames of every camera come."""
        self.ready()
        for camera in self.status()["cameras"]:
            self.wait_state(camera["name"], "live", START_S)
        return self

    def get(self, path: str) -> str:
        """A text of the page, also with an error code."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{path}", timeout=5) as answer:
                text: str = answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        return text

    def status(self) -> dict[str, Any]:
        """`status.RunStatus` as JSON."""
        found: dict[str, Any] = json.loads(self.get("status.json"))
        return found

    def camera(self, name: str) -> dict[str, Any]:
        """Its `CameraStatus`."""
        one: dict[str, Any] = next(one for one in self.status()["cameras"] if one["name"] == name)
        return one

    def source(self, name: str) -> dict[str, Any]:
        """Its `SourceStatus`."""
        found: dict[str, Any] = self.camera(name)["source"]
        return found

    def wait_state(self, name: str, state: str, timeout_s: float) -> float:
        """Seconds until a camera is in a state; infinite if it is not within `timeout_s`."""
        try:
            return wait_until(state, lambda: self.source(name)["state"] == state, timeout_s, 0.1)
        except TimeoutError:
            return float("inf")

    def first_times(self, name: str, states: set[str], timeout_s: float) -> dict[str, float]:
        """Seconds until a camera was first seen in each of the states; waits for the last of them."""
        start, seen = time.monotonic(), dict[str, float]()
        while states - set(seen) and (passed_s := time.monotonic() - start) < timeout_s:
            seen.setdefault(self.source(name)["state"], passed_s)
            time.sleep(0.05)
        return seen

    def fps(self, name: str, seconds: float) -> float:
        """Frames of a camera that are processed a second, measured over `seconds`."""
        frames, start = self.camera(name)["frames"], time.monotonic()
        time.sleep(seconds)
        return float(self.camera(name)["frames"] - frames) / (time.monotonic() - start)

    def events(self, camera: str | None = None) -> list[dict[str, Any]]:
        """Complete lines of the events file, of all or of one camera."""
        if not self.events_path.exists():
            return []
        lines = self.events_path.read_text().split("\n")[:-1]
        found = [json.loads(line) for line in lines]
        return [one for one in found if camera in (None, one["camera"])]

    def log(self) -> str:
        """All it wrote to standard output and error."""
        return self.log_path.read_text()

    def children(self) -> list[int]:
        """Process ids of the children, zombies too."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                found += map(int, (task / "children").read_text().split())
        return found

    def zombies(self) -> int:
        states = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][1] for child in self.children()]
        return states.count("Z")

    def memory_mb(self) -> float:
        """Resident, of the program without its children."""
        return _resident_mb(self.process.pid)

    def readers_mb(self) -> float:
        """Resident, of its children."""
        return sum(_resident_mb(child) for child in self.children())

    def open_files(self) -> int:
        """Of the program and its children."""
        return sum(len(os.listdir(f"/proc/{one}/fd")) for one in (self.process.pid, *self.children()))

    def stop(self, timeout_s: float = 20) -> tuple[float, int]:
        """SIGTERM; seconds to its end, and the exit code."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        return time.monotonic() - start, code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise TimeoutError(f"the run ended with {self.process.returncode}")
        try:
            return bool(self.status()["cameras"])
        except OSError:
            return False


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
