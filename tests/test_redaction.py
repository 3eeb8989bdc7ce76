"""No secret leaves a program: its log, its tracebacks and its warnings, in real processes that crash."""

from __future__ import annotations

import base64
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from s3clip_runtime.cli.log import Redactor
from s3clip_runtime.site.secrets import secret_parts

PASSWORDS = ["hunter2", "p@ss/w#rd:1", "a b'c\"d\\e", "ünï<&>%41", "x?token=1&y", "pw", "***", "^.*$"]

START = """
import logging, sys, threading, warnings
from s3clip_runtime.cli.log import set_up_logging

URL, PASSWORD, *secrets = sys.argv[1:]
redactor = set_up_logging(logging.INFO, secrets)
log = logging.getLogger("s3clip_runtime.test")
log.info("begun")
"""

CRASHES = {
    "chained": """
secret = URL
try:
    try:
        raise OSError(f'not reachable: {secret}')
    except OSError as error:
        raise ValueError(URL) from error
except ValueError:
    raise KeyError(URL)
""",
    "group": """
error = ExceptionGroup(URL, [ValueError(URL), OSError(5, 'lost', URL)])
error.add_note(f'while opening {URL}')
raise error
""",
    "ffmpeg": "import av\nav.open(URL, timeout=(2, 2))",
    "syntax": "exec(compile(f'open({URL!r}', 'camera.py', 'exec'))",
}

SURVIVED = {
    "thread": "t = threading.Thread(target=lambda: int(URL), name=URL)\nt.start()\nt.join()",
    "destructor": """
class Camera:
    def __del__(self):
        raise ValueError(URL)
    def __repr__(self):
        return URL
Camera()
""",
    "logged exception": "try:\n    int(URL)\nexcept ValueError:\n    log.exception('%s failed', URL)",
    "argument": "log.warning('open %s, %r, %s', URL, URL, {'url': URL, 'pair': (URL, 1)})",
    "other library": "logging.getLogger('paho').warning('connect %s', URL)",
    "warnings": "warnings.warn(f'{URL} is old')",
    "broken log call": "log.warning('open %s %s', URL)",
    "broken repr": """
class Bad:
    def __str__(self):
        raise RuntimeError(URL)
log.warning('open %s', Bad())
""",
    "ffmpeg, logged": """
import av
av.logging.set_level(av.logging.DEBUG)
logging.getLogger('libav').setLevel(1)
try:
    av.open(URL, timeout=(2, 2))
except av.FFmpegError as error:
    log.error('camera gate: %s', error)
""",
}

NO_URL = {
    "alone": "log.error('401 for user with %s', PASSWORD)",
    "its repr": "log.error('401 for %r', PASSWORD)",
    "percent-encoded": "from urllib.parse import quote\nlog.error('401 for %s', quote(PASSWORD, safe=''))",
    "JSON": "import json\nlog.error(json.dumps({'password': PASSWORD}))",
    "basic authorisation": "import base64\nlog.error('Authorization: Basic %s', "
    "base64.b64encode(('user:' + PASSWORD).encode()).decode())",
}


def run(code: str, password: str, *, registered: bool) -> subprocess.CompletedProcess[str]:
    url = f"rtsp://user:{password}@127.0.0.1:9/stream?channel=1"
    words = [sys.executable, "-X", "utf8", "-c", START + code, url, password]
    words += secret_parts(url) if registered else ()
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def spellings(password: str) -> set[str]:
    return {
        password, quote(password), quote(password, safe=""), quote_plus(password), repr(password)[1:-1],
        json.dumps(password)[1:-1], base64.b64encode(f"user:{password}".encode()).decode(),
    }  # fmt: skip


def one_after_the_other(cases: dict[str, str]) -> str:
    """One program of all; a line before each tells where it is."""
    return "\n".join(
        f"print('## {name}', file=sys.stderr, flush=True)\n{code}" for name, code in cases.items()
    )


def assert_hidden(text: str, password: str) -> None:
    assert "INFO s3clip_runtime.test: begun" in text
    assert not [form for form in spellings(password) if form in text], text
    assert not re.search("w#rd|hunter", text), text


OTHERS = {"p@ss/w#rd:1": True, "hunter2\"'x": False}
"""Passwords, and whether they are registered: one that is not is hidden where it stands in an address."""


@pytest.mark.parametrize(
    ("case", "password"), list(zip(CRASHES, [*OTHERS, *OTHERS], strict=True)), ids=list(CRASHES)
)
def test_a_crash_shows_no_password(case: str, password: str) -> None:
    done = run(CRASHES[case], password, registered=OTHERS[password])
    assert done.returncode == 1
    assert "CRITICAL s3clip_runtime.cli.log: uncaught" in done.stderr
    assert_hidden(done.stdout + done.stderr, password)


def test_what_a_program_survives_shows_no_password() -> None:
    for password, registered in OTHERS.items():
        done = run(one_after_the_other(SURVIVED), password, registered=registered)
        assert done.returncode == 0
        assert_hidden(done.stdout + done.stderr, password)
        told = re.split("(?m)^## ", done.stderr)[1:]
        assert len(told) == len(SURVIVED)
        assert all(len(part.splitlines()) > 1 for part in told), done.stderr  # each of them tells something


def test_the_same_programs_show_it_without_the_log() -> None:
    """The tests above can fail: plain Python prints the password in every one of these cases."""
    start = START.replace("redactor = set_up", "logging.raiseExceptions = True; (lambda *words: None) #")
    for code in (one_after_the_other(SURVIVED), CRASHES["chained"], CRASHES["ffmpeg"]):
        words = [
            sys.executable,
            "-c",
            start + code,
            "rtsp://user:hunter2@127.0.0.1:9/x",
            "hunter2",
            "unknown",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        for part in re.split("(?m)^## ", done.stderr)[bool("## " in done.stderr) :]:
            assert "hunter2" in part


def test_a_registered_password_is_hidden_in_every_spelling() -> None:
    done = run(one_after_the_other(NO_URL), "p@ss/w#rd:1", registered=True)
    told = re.split("(?m)^## ", done.stderr)[1:]
    assert len(told) == len(NO_URL)
    assert all("***" in part for part in told), done.stderr
    assert_hidden(done.stderr, "p@ss/w#rd:1")


def test_a_bug_still_shows_its_traceback_and_fails() -> None:
    done = run(CRASHES["chained"], "hunter2", registered=True)
    assert done.returncode == 1
    assert "CRITICAL s3clip_runtime.cli.log: uncaught KeyError" in done.stderr
    assert "not reachable: rtsp://***@127.0.0.1:9/stream?***" in done.stderr
    assert "During handling of the above exception" in done.stderr
    assert 'File "<string>", line' in done.stderr


def test_ffmpeg_itself_prints_nothing() -> None:
    """Its own log goes past Python's. PyAV leaves it off, and so does set_up_logging."""
    code = "import av\nassert av.logging.get_level() is None\n"
    code += "try:\n    av.open(URL, timeout=(2, 2))\nexcept OSError:\n    pass"
    done = run(code, "hunter2", registered=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("password", PASSWORDS)
def test_every_spelling_of_every_password(password: str) -> None:
    url = f"rtsp://user:{password}@10.0.0.5/x"
    redactor = Redactor(secret_parts(url))
    addresses = {url, quote(url), repr(url), json.dumps({"url": url, "n": 1})}
    for form in {*spellings(password), *addresses} - {"***"}:
        for text in (f"a {form} b", f"a\n{form}", f"<{form}>", f"'{form}',"):
            shown = redactor(text)
            assert form not in shown
            assert password not in shown.replace("***", "")


def test_short_secrets_are_hidden_where_they_stand_alone() -> None:
    redactor = Redactor(["pw"])
    assert redactor("pw, 'pw' and pw=pw; powpow") == "***, '***' and ***=***; powpow"


def test_what_is_no_secret_stays() -> None:
    redactor = Redactor(["hunter2"])
    for text in (
        "camera gate (rtsp://10.0.0.5/x): connected",
        "mail ops@example.org about clip.mp4",
        "12:30:01 50 % of frames/s at 10.0.0.5:554",
        "http://127.0.0.1:8765/cameras/gate.jpg",
    ):
        assert redactor(text) == text
    assert (
        redactor("lost rtsp://u:x@h/a b@c and http://h/y?z=1 too")
        == "lost rtsp://***@h/a b@c and http://h/y?*** too"
    )


def test_more_secrets_join_and_old_ones_stay() -> None:
    """As on a reload with a new password."""
    redactor = Redactor(["first-one"])
    redactor.add(["second-one"])
    assert redactor("first-one second-one third-one") == "*** *** third-one"
    assert "one" not in repr(redactor).replace("forms", "")


def test_the_longer_secret_goes_first() -> None:
    assert Redactor(["abcd", "abcdefgh"])("abcdefgh abcd") == "*** ***"


def test_levels_are_ours_alone() -> None:
    code = "logging.getLogger('paho').info('chat')\nlog.debug('detail')\nset_up_logging(logging.INFO)\n"
    code += "log.info('news')  # once, though the log was set up twice"
    lines = run(code, "hunter2", registered=True).stderr.splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == ["begun", "news"]
    assert lines[0][:4].isdigit()
    assert lines[0].split(" ")[0].endswith("Z")


def test_a_log_to_nowhere_ends_nothing(tmp_path: Path) -> None:
    """Standard error is closed, as when the terminal is gone."""
    code = START + f"import os\nos.close(2)\nlog.error('x')\nopen({str(tmp_path / 'alive')!r}, 'w').close()"
    subprocess.run(
        [sys.executable, "-c", code, "rtsp://h/x", "pw"], check=False, timeout=60, capture_output=True
    )
    assert (tmp_path / "alive").exists()


def test_nothing_happens_at_import() -> None:
    code = (
        "import logging, sys, threading\nbefore = sys.excepthook, threading.excepthook, sys.unraisablehook\n"
        "import s3clip_runtime.cli.log\n"
        "assert before == (sys.excepthook, threading.excepthook, sys.unraisablehook)\n"
        "assert not logging.getLogger().handlers\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert logging.getLogger("s3clip_runtime.cli.log").level == logging.NOTSET
