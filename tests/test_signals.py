"""Signals and systemd: real signals to real processes, a real datagram socket in systemd's place."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from s3clip_runtime.cli.signals import stop_on_signals
from s3clip_runtime.cli.systemd import ServiceManager

UNIT = Path(__file__).parents[1] / "docs/s3clip-run.service"

PROGRAM = """
import signal, threading, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` and some CI machines start tests with it ignored
from s3clip_runtime.cli.signals import stop_on_signals

reload = threading.Event() if {handled} else None
with stop_on_signals("what was read is still processed", reload) as stop:
    print("up", flush=True)
    deadline_s = time.monotonic() + 20
    while not stop.wait(0.01) and time.monotonic() < deadline_s:
        if reload is not None and reload.is_set():
            reload.clear()
            print("reload", flush=True)
    print("stopped", flush=True)
    time.sleep({linger_s})
"""


def start(*, handled: bool, linger_s: float = 0) -> subprocess.Popen[str]:
    code = PROGRAM.format(handled=handled, linger_s=linger_s)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_hang_up_reloads_and_terminate_stops() -> None:
    with start(handled=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "reload\n"
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "stopped\n")
    assert "stopping: what was read is still processed; once more aborts" in errors


def test_without_reload_hang_up_ends_the_process() -> None:
    with start(handled=False) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=10) == -signal.SIGHUP


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_second_signal_aborts(number: signal.Signals, code: int) -> None:
    with start(handled=True, linger_s=20) as process:
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGHUP)  # a late reload must not abort what is being flushed
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=10) == code


def test_handlers_are_put_back_and_no_thread_stays() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with stop_on_signals("nothing", threading.Event()):
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_a_reload_after_the_stop_is_not_asked_for() -> None:
    reload = threading.Event()
    with stop_on_signals("nothing", reload) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not reload.wait(0.1)


STORM = """
import signal, sys, threading, time
from s3clip_runtime.cli.signals import stop_on_signals

reload = threading.Event()
with stop_on_signals("nothing", reload):
    print("up", flush=True)
    deadline_s = time.monotonic() + 1.5
    while time.monotonic() < deadline_s:
        reload.wait(1e-5)
        reload.clear()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    print("alive", flush=True)
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    sys.exit(0)
"""


def test_signals_never_deadlock_with_who_waits_for_them() -> None:
    """Event.set in a handler would: it did within 1,000 signals when the main thread waited in a loop."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", STORM], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        deadline_s = time.monotonic() + 1.2
        while process.poll() is None and time.monotonic() < deadline_s:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.0005)
        try:
            out, errors = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("the program hangs")
    assert (process.returncode, out) == (0, "alive\n"), errors[-2000:]


@pytest.fixture(params=["path", "abstract"])
def notified(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A bound datagram socket and its name as NOTIFY_SOCKET gives it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@s3clip-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name[1:] if name.startswith("@") else name)
        channel.settimeout(2)
        yield channel, name


def test_systemd_is_told(notified: tuple[socket.socket, str]) -> None:
    channel, name = notified
    manager = ServiceManager({"NOTIFY_SOCKET": name})
    manager.ready()
    assert channel.recv(1000) == b"READY=1"
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    match = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)", channel.recv(1000))
    assert match is not None
    assert before_us <= int(match[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.status("4 cameras\nREADY=0")
    assert channel.recv(1000) == b"STATUS=4 cameras READY=0"
    manager.stopping()
    assert channel.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("usec", "pid", "fed"),
    [
        ("400000", None, True),
        ("400000", os.getpid(), True),
        ("400000", 1, False),
        ("0", None, False),
        ("x", None, False),
    ],
    ids=["set", "ours", "another process", "zero", "no number"],
)
def test_the_watchdog_is_fed_when_it_is_for_this_process(
    usec: str, pid: int | None, fed: bool, notified: tuple[socket.socket, str]
) -> None:
    channel, name = notified
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": usec}
    manager = ServiceManager(environ if pid is None else {**environ, "WATCHDOG_PID": str(pid)})
    channel.setblocking(False)
    calls_s, fed_s = [time.monotonic()], []
    while calls_s[-1] < calls_s[0] + 0.45:
        manager.alive()
        calls_s.append(time.monotonic())
        with suppress(BlockingIOError):
            assert channel.recv(100) == b"WATCHDOG=1"
            fed_s.append(calls_s[-1])
        time.sleep(0.005)
    if not fed:
        assert not fed_s
        return
    pause_s = max(after - before for before, after in pairwise(calls_s))  # of this test on a busy machine
    assert len(fed_s) <= 6
    assert fed_s[0] == calls_s[1]
    assert all(after - before <= 0.1 + 2 * pause_s for before, after in pairwise([*fed_s, calls_s[-1]]))


def test_without_systemd_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager({})
    manager.ready()
    manager.alive()
    assert not caplog.records


def test_a_systemd_that_is_gone_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "systemd was not told READY=1" in caplog.text


def test_a_systemd_that_does_not_read_does_not_block(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "full"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", str(tmp_path / "full"))
            began_s = time.monotonic()
            ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "full")}).stopping()
            assert time.monotonic() - began_s < 3


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    """Its own checker; the program and the comments' settings stand in as they would be used."""
    text = re.sub(r"(?m)^ExecStart=.*", f"ExecStart={sys.executable} -V", UNIT.read_text("utf-8"))
    for name, unit in {"plain": text, "all": re.sub(r"(?m)^#(?=[A-Z][A-Za-z]+=)", "", text)}.items():
        file = tmp_path / f"s3clip-{name}.service"
        file.write_text(unit)
        done = subprocess.run(
            ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
