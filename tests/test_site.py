"""The site file: what it may say, how faults are told, where secrets come from, what a reload changes."""

from __future__ import annotations

import logging
import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from s3clip_runtime.errors import ConfigError
from s3clip_runtime.settings import _keys, _models_in
from s3clip_runtime.site.load import AT_START_ONLY, changes, load_site
from s3clip_runtime.site.model import Site
from s3clip_runtime.site.secrets import LONGEST_SECRET, read_secret, secret_parts, warn_on_command_line

ROOT = Path(__file__).parents[1]
EXAMPLE = (ROOT / "configs/site.toml").read_text("utf-8")
OPERATIONS = ROOT / "docs/operations.md"

GATE = '[[cameras]]\nname = "gate"\nplatform = "ground"\nurl = "rtsp://10.0.0.5/x"\n'
SMALL = f'bundle = "b"\n{GATE}'
PASSWORD = "p@ss/w#rd:1"


def site_from(folder: Path, text: str, name: str = "site.toml") -> Site:
    file = folder / name
    file.write_text(text, "utf-8")
    file.chmod(0o600)
    return load_site(file)


def refusal_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        site_from(folder, text)
    return str(caught.value)


def private(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, "utf-8")
    file.chmod(0o600)
    return file


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key that the model takes, like `outputs.mqtt.port`, with its default."""
    for name, field in _keys(model).items():
        inner = list(_models_in(field.annotation))
        if inner:
            yield from settings_of(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default


# --- the example file and the page of the docs


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the example names besides the site file."""
    for name in ("page", "mqtt", "hook-token", "gallery-key"):
        private(tmp_path, f"secrets/{name}", "correct horse\n")
    private(tmp_path, "secrets/gate", "rtsp://u:pw@h/x\n")
    private(tmp_path, "secrets/webhook", "https://hooks.example/x\n")
    private(tmp_path, "secrets/gallery", "postgresql://s3clip:pw@db.example/people\n")
    (tmp_path / "yolox.onnx").touch()
    for name in ("PAGE_TOKEN", "MQTT_PASSWORD", "WEBHOOK_TOKEN"):
        monkeypatch.setenv(f"S3CLIP_{name}", "correct horse")
    monkeypatch.setenv("S3CLIP_GATE", "rtsp://u:pw@h/x")
    monkeypatch.setenv("S3CLIP_GALLERY", "postgresql://s3clip:pw@db.example/people")
    monkeypatch.setenv("S3CLIP_WEBHOOK", "https://hooks.example/x")
    return tmp_path


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^#(?=\[|[a-z_]+ = )", "", text)


def test_the_example_loads_as_it_is_and_says_nothing_but_defaults(example_folder: Path) -> None:
    site = site_from(example_folder, EXAMPLE)
    smallest = 'bundle = "my-bundle"\n[page]\n[outputs.events]\npath = "events.jsonl"\n' + GATE.replace(
        "/x", "/stream"
    )
    assert site == site_from(example_folder, smallest)


def test_every_commented_setting_of_the_example_loads(example_folder: Path) -> None:
    site = site_from(example_folder, uncommented(EXAMPLE))
    assert site.threshold == 0.7
    assert site.identities is not None
    assert [(way.from_, way.to) for way in site.identities.travel] == [("gate", "drone")]
    assert site.gallery == example_folder / "people.sqlite"
    assert [camera.name for camera in site.cameras] == ["gate", "drone"]
    assert site.cameras[1].tile_counts == (2, 2)
    assert site.outputs.mqtt is not None
    assert site.outputs.mqtt.spool == example_folder / "mqtt-spool.sqlite"


def test_every_alternative_of_the_example_loads(example_folder: Path) -> None:
    lines = EXAMPLE.splitlines()
    tried = 0
    for number, line in enumerate(lines):
        if line.startswith("#or "):
            above = max(n for n in range(number) if not lines[n].startswith("#or "))
            chosen = [*lines]
            chosen[above] = line.removeprefix("#or ")
            site = site_from(example_folder, uncommented("\n".join(chosen)))
            assert len(site.cameras) == 2
            tried += 1
    assert tried == EXAMPLE.count("\n#or ") > 5


def example_keys() -> dict[str, Any]:
    """All settings of the example, also commented ones and alternatives, with the value shown."""
    text = re.sub(r"(?m)^#or ", "#", EXAMPLE)
    found: dict[str, Any] = {}
    section = ""
    for line in uncommented(text).splitlines():
        if line.startswith("["):
            section = line.split("]")[0].strip("[") + "."
        elif match := re.match(r"([a-z_]+) = ", line):
            found.setdefault(section + match[1], tomllib.loads(line)[match[1]])
    return found


def test_example_and_model_have_the_same_keys_and_defaults() -> None:
    shown, known = example_keys(), dict(settings_of(Site))
    assert set(shown) == set(known)
    for key, default in known.items():
        if default is not None and default is not PydanticUndefined:
            assert shown[key] == (str(default) if isinstance(default, Path) else default), key


def test_operations_page_lists_every_setting_with_its_default() -> None:
    text = OPERATIONS.read_text("utf-8").partition("All settings\n")[2]
    rows = re.findall(r"(?m)^\| `([a-z_.]+)` \| (.+?) \| .+ \|$", text)
    table, known = dict(rows), dict(settings_of(Site))
    assert len(table) == len(rows)
    assert set(table) == set(known)
    for key, default in known.items():
        if default is PydanticUndefined:
            assert table[key] == "required", key
        elif default is None:
            assert table[key] == "none", key
        else:
            text = str(default).lower() if isinstance(default, bool) else f"{default}"
            assert table[key] == f"`{text}`", key


# --- values and form


def test_paths_are_relative_to_the_site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.onnx").touch()
    text = (
        f'{SMALL}detector = "net.onnx"\n[[cameras]]\nname = "film"\nplatform = "aerial"\nurl = "a/film.mp4"\n'
    )
    text += 'detector = "unix:boxes.sock"\n[outputs.events]\npath = "/var/log/events.jsonl"\n'
    monkeypatch.chdir(tmp_path)
    (elsewhere / "site.toml").write_text(text)
    site = load_site(Path("elsewhere/site.toml"))
    assert site.bundle == elsewhere / "b"
    assert site.cameras[0].detector == str(elsewhere / "net.onnx")
    assert site.cameras[0].source.url == "rtsp://10.0.0.5/x"
    assert site.cameras[1].source.url == str(elsewhere / "a/film.mp4")
    assert site.cameras[1].detector == f"unix:{elsewhere / 'boxes.sock'}"
    assert site.outputs.events is not None
    assert site.outputs.events.path == Path("/var/log/events.jsonl")


def test_tracker_follows_the_platform(tmp_path: Path) -> None:
    cameras = site_from(tmp_path, SMALL + GATE.replace("gate", "sky").replace("ground", "aerial")).cameras
    assert [camera.chosen_tracker for camera in cameras] == ["bytetrack", "botsort"]
    assert site_from(tmp_path, f'{SMALL}tracker = "botsort"\n').cameras[0].chosen_tracker == "botsort"


CAMERA_FAULTS = {
    'platform = "sea"': r"cameras\[gate\]\.platform: not one of ground, aerial, got 'sea'",
    'tiles = "2x0"\ndetector = "net.onnx"': r"cameras\[gate\]\.tiles: .*write for example 2x2",
    'tiles = "2x2"': "tiles: works with a network, not with detector background",
    'detector = "backgroud"': r"cameras\[gate\]\.detector: no such file or folder; write background",
    'detector = "tcp:0.0.0.0:9000?token_env=NOT_SET_HERE"': "detector: token_env: .*NOT_SET_HERE is not set",
    'detector = "unix:b.sock?token_file=gone"': "detector: token_file: /.*/gone: no such file",
    "read_timeout_s = 0": r"cameras\[gate\]\.read_timeout_s: .*greater than or equal to 0\.5, got 0",
    "read_timeout_s = 61": r"less than or equal to 60, got 61",
    "open_timeout_s = nan": r"cameras\[gate\]\.open_timeout_s",
    'tracker = "sort"': r"'bytetrack' or 'botsort'",
    'url_env = "GATE"': "give exactly one of url, url_env and url_file, not 2",
    'read_timeout = 3': r"cameras\[gate\]\.read_timeout: unknown key; did you mean read_timeout_s\?",
    'port = 3': r"cameras\[gate\]\.port: unknown key; did you mean port\?",
}  # fmt: skip


@pytest.mark.parametrize("line", CAMERA_FAULTS)
def test_camera_faults_name_the_camera_and_the_cure(line: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    text = SMALL.replace('platform = "ground"\n', "") if line.startswith("platform") else SMALL
    assert re.search(CAMERA_FAULTS[line], refusal_of(tmp_path, f"{text}{line}\n"))


SITE_FAULTS = {
    "threshold = 0.5": r"site\.toml: threshold: needs a gallery",
    'gallery = "g"\nthreshold = 1.5': "threshold: .*less than or equal to 1, got 1.5",
    'gallery = "g"\nthreshold = nan': "threshold: .*finite",
    "first_look_frames = 3": "first_look_frames: 3 is less than min_frames 4",
    "latency_ms = 0": "latency_ms: .*greater than 0, got 0",
    'thresold = 0.5\ngallery = "g"': r"thresold: unknown key; did you mean threshold\?",
    'enhance = "on"': "enhance: .*'auto' or 'off', got 'on'",
    'gallery = ""': "gallery: an empty path",
    'page.listen = "8765"': r"page: listen: not HOST:PORT with a port of 0 to 65535",
    'page.listen = "127.0.0.1:65536"': r"page: listen: not HOST:PORT",
    'page.listen = "::1:80"': r"page: listen: not HOST:PORT",
    'page.listen = "0.0.0.0:80"': "page: listen: 0.0.0.0 is not loopback.*give token_file or token_env",
    'page.listen = "[::]:80"': "page: listen: :: is not loopback",
    'page.token_env = "NOT_SET_HERE"': "page: token_env: the environment variable NOT_SET_HERE is not set",
    'gallery = "postgresql://h/x"': "gallery: is the path of a file; an address belongs into",
    'gallery_url = "postgresql://u:hunter2@h/x"\ngallery = "g"': "gallery: a file and a server are given",
    'gallery_url = "mysql://u:hunter2@h/x"': r"gallery_url: not the address of a server; write postgresql://",
    'gallery_url_env = "NOT_SET_HERE"': "gallery_url_env: the environment variable NOT_SET_HERE is not set",
    'gallery_url_file = "gone"': "gallery_url_file: /.*/gone: no such file",
    'gallery_url = "postgresql://h/x"\ngallery_url_env = "HOME"':
        "give at most one of gallery_url, gallery_url_env and gallery_url_file, not 2",
    'gallery_key_file = "k"': "gallery_key_file: needs a gallery",
    "identities.unknowns = true": "identities: needs a gallery",
    'gallery = "g"\nidentities.unknown = true': r"identities\.unknown: unknown key; did you mean unknowns\?",
    'gallery = "g"\nidentities.promote_after = 0': r"identities\.promote_after: .*greater than 0, got 0",
    'gallery = "g"\nidentities.min_quality = 30': r"\.min_quality: .*less than or equal to 1, got 30",
    'gallery = "g"\nidentities.keep_days = 0': r"identities\.keep_days: .*greater than 0, got 0",
    'gallery = "g"\nidentities.keep_days = inf': r"identities\.keep_days: .*finite",
    'gallery = "g"\nidentities.travel = [{from = "a", min_s = 1}]':
        r"identities\.travel\[number 1\]\.to: Field required",
    'gallery = "g"\nidentities.travel = [{form = "a", to = "b", min_s = 1}]':
        r"travel\[number 1\]\.form: unknown key; did you mean from\?",
    'gallery = "g"\nidentities.travel = [{from = "a", to = "b", min_s = 9, max_s = 3}]':
        "max_s: 3 is less than min_s 9",
    'gallery = "g"\nidentities.travel = [{from = "a", to = "b"}]': "limits nothing; give min_s, max_s",
    'gallery = "g"\n'
    'identities.travel = [{from = "a", to = "b", min_s = 1}, {from = "a", to = "b", max_s = 9}]':
        "travel: 2 tables go from a to b; write one",
    'outputs.mqtt.topic = "x"': r"outputs\.mqtt\.host: Field required",
    'outputs.mqtt = {host = "h", topic = "a/#"}': "topic: not one to publish to",
    'outputs.mqtt = {host = "h", topic = "a/{cam}"}': "topic: not one to publish to",
    'outputs.mqtt = {host = "h", password_env = "HOME"}': "user: missing, and a password is given",
    'outputs.mqtt = {host = "h", spool_mb = 0}': r"outputs\.mqtt\.spool_mb: .*greater than 0",
    'outputs.webhook.url = "ftp://h/x"': "url: not an http or https address",
    "outputs.webhook.spool_mb = 1": "give exactly one of url, url_env and url_file, not 0",
    'outputs.events = {path = "x", rotate_mb = -1}': "rotate_mb: .*greater than or equal to 0",
    'outputs.crops = {folder = "c", keep_days = 0}': "keep_days: .*greater than 0",
    'outputs.crops = {folder = "c", which = "some"}': "which: .*'match', 'unknown' or 'all'",
    'outputs.video.path = "v"': r"outputs\.video\.path: unknown key",
    'outputs.mqtt = {host = "h", spool = "s"}\noutputs.webhook = {url = "http://h/x", spool = "s"}':
        "mqtt.spool and webhook.spool are the same file",
}  # fmt: skip


@pytest.mark.parametrize("line", SITE_FAULTS)
def test_site_faults_name_the_key_and_the_cure(line: str, tmp_path: Path) -> None:
    message = refusal_of(tmp_path, f"{line}\n{SMALL}")
    assert re.search(SITE_FAULTS[line], message)
    assert "hunter2" not in message


def test_several_faults_are_told_together(tmp_path: Path) -> None:
    message = refusal_of(tmp_path, f'lateny_ms = 3\ndevice = "gpu"\n{SMALL}reed_timeout_s = 1\n')
    assert message.startswith(f"site {tmp_path}/site.toml: ")
    for part in (
        "lateny_ms: unknown key; did you mean latency_ms?",
        "device: ",
        "did you mean read_timeout_s?",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".", "a=b", "ä", "a\\\\n"])
def test_names_that_no_file_can_have_are_refused(name: str, tmp_path: Path) -> None:
    text = SMALL.replace('"gate"', f'"{name}"')
    assert re.search(r"cameras\[.*\]\.name: may hold only letters", refusal_of(tmp_path, text))


def test_cameras_differ(tmp_path: Path) -> None:
    assert "cameras: 2 are named gate" in refusal_of(tmp_path, SMALL + GATE)
    assert "cameras: none" in refusal_of(tmp_path, 'bundle = "b"\ncameras = []\n')
    assert "cameras: Field required" in refusal_of(tmp_path, 'bundle = "b"\n')


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    assert re.search(r"site\.toml: not valid TOML .*line 3", refusal_of(tmp_path, 'bundle = "b"\n\nx = \n'))
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file"):
        load_site(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path)


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("localhost:80", "localhost", 80), ("[::1]:8765", "::1", 8765)],
)
def test_loopback_needs_no_token(listen: str, host: str, port: int, tmp_path: Path) -> None:
    page = site_from(tmp_path, f'page.listen = "{listen}"\n{SMALL}').page
    assert page is not None
    assert (page.host, page.port, page.token) == (host, port, None)


# --- secrets


def test_secrets_come_from_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private(tmp_path, "gate", f"rtsp://u:{PASSWORD}@h/x\n")
    private(tmp_path, "token", " spaces stay \r\n")
    monkeypatch.setenv("HOOK", "https://hooks.example/services/T0/B0/abcdefgh")
    monkeypatch.setenv("BROKER_PW", "hunter two")
    text = SMALL.replace('url = "rtsp://10.0.0.5/x"', 'url_file = "gate"') + (
        '[page]\nlisten = "0.0.0.0:80"\ntoken_file = "token"\n[outputs.webhook]\nurl_env = "HOOK"\n'
        '[outputs.mqtt]\nhost = "h"\nuser = "me"\npassword_env = "BROKER_PW"\n'
    )
    site = site_from(tmp_path, text)
    assert site.cameras[0].source.url == f"rtsp://u:{PASSWORD}@h/x"
    assert site.page is not None
    assert site.page.token is not None
    assert site.page.token.get_secret_value() == " spaces stay "
    secrets = site.secrets()
    assert {PASSWORD, " spaces stay ", "hunter two", "services/T0/B0/abcdefgh"} <= secrets
    assert not {"u", "h", "rtsp://10.0.0.5/x"} & secrets
    shown = f"{site!r} {site} {site.cameras[0].source!r} {site.model_dump()} {site.model_dump_json()}"
    assert not [secret for secret in secrets if secret in shown]


LEAKY = {
    "url twice": f'{SMALL}url_file = "x"\n'.replace("//10", f"//u:{PASSWORD}@10"),
    "not a string": SMALL.replace('"rtsp://10.0.0.5/x"', f'["rtsp://u:{PASSWORD}@h/x"]'),
    "other faults": f"x = 1\nlatency_ms = 0\n{SMALL}".replace("//10", f"//u:{PASSWORD}@10"),
    "password as a variable's name": f'{SMALL}url_env = "{PASSWORD}"\n',
    "password as a key": f'{SMALL}[outputs.mqtt]\nhost = "h"\npassword = "{PASSWORD}"\n',
    "token as a key": f'{SMALL}[page]\ntoken = "{PASSWORD}"\n',
    "address as a name": SMALL.replace('"gate"', f'"rtsp://u:{PASSWORD}@h/x"'),
    "address as a detector": f'{SMALL}detector = "rtsp://u:{PASSWORD}@h/x"\n',
    "token of boxes as a variable": f'{SMALL}detector = "tcp:127.0.0.1:9?token_env={PASSWORD}"\n',
    "token of boxes as it is": f'{SMALL}tiles = "2x2"\ndetector = "tcp:127.0.0.1:9?token={PASSWORD}"\n',
    "token of boxes behind a typo": f'{SMALL}detector = "tpc:127.0.0.1:9?token={PASSWORD}"\n',
    "address in listen": f'{SMALL}[page]\nlisten = "u:{PASSWORD}@0.0.0.0:80"\n',
    "address as a host": f'{SMALL}[outputs.mqtt]\nhost = "h"\nport = "mqtt://u:{PASSWORD}@h"\n',
    "webhook of another kind": f'{SMALL}[outputs.webhook]\nurl = "ftp://u:{PASSWORD}@h/x"\n',
    "bad toml": f'{SMALL}[outputs.webhook]\nurl = "https://u:{PASSWORD}@h/x\n',
    "two lines": SMALL.replace("rtsp://10", f"rtsp://u:{PASSWORD}\\n@10"),
    "nothing is a table": f'bundle = "b"\ncameras = "rtsp://u:{PASSWORD}@h/x"\n',
}


@pytest.mark.parametrize("case", LEAKY)
def test_no_message_shows_a_secret(case: str, tmp_path: Path) -> None:
    message = refusal_of(tmp_path, LEAKY[case])
    assert PASSWORD not in message
    assert "w#rd" not in message


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_to_a_site_file_is_a_bug_or_a_leak(seed: int, example_folder: Path) -> None:
    """Random damage gives a site or one clear error, never a traceback, and no message shows the password."""
    chance = random.Random(seed)
    whole = uncommented(EXAMPLE).replace("rtsp://10", f"rtsp://user:{PASSWORD}@10").splitlines()
    values = [
        "",
        "[]",
        "{}",
        "-1",
        "nan",
        "1e400",
        "true",
        '""',
        "'\0'",
        "[[1]]",
        "1979-05-27",
        '"a\\nb"',
        "9" * 400,
    ]
    messages = []
    for _ in range(50):
        lines = [*whole]
        for _ in range(chance.randint(1, 3)):
            number = chance.randrange(len(lines))
            key, mark, value = lines[number].partition(" = ")
            lines[number : number + 1] = chance.choice(
                (
                    [],
                    [lines[number]] * 2,
                    [f"{key}{mark}{chance.choice(values)}"],
                    [f"{key[:-1]}{mark}{value}"],
                    [lines[number], chance.choice(lines)],
                    [lines[number][: chance.randrange(len(lines[number]) + 1)]],
                )
            )
        try:
            site_from(example_folder, "\n".join(lines))
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not [message for message in messages if PASSWORD in message]
    assert all(message.startswith(f"site {example_folder}/site.toml: ") for message in messages)


def test_a_traceback_of_a_refused_site_shows_no_secret(tmp_path: Path) -> None:
    """Pydantic's own error quotes its input: it must not hang on ours as cause or context."""
    with pytest.raises(ConfigError) as caught:
        site_from(tmp_path, LEAKY["other faults"])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hunter2\nhunter3\n", "line breaks"),
        (b"hunter2\0", "control characters"),
        (b"hunter2\xff", "not UTF-8"),
        (b"hunter2" * LONGEST_SECRET, "larger than"),
    ],
)
def test_broken_secret_files_are_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_secret("token", None, None, file)
    assert "hunter" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_missing_secrets_and_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", " ")
    for env, file, sentence in [
        ("EMPTY", None, "token_env: the environment variable EMPTY is empty"),
        ("NOT_SET_HERE", None, "NOT_SET_HERE is not set; set it, or use token_file"),
        (None, tmp_path / "gone", "gone: no such file"),
        (None, tmp_path, "is not a regular file"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            read_secret("token", None, env, file)
    assert read_secret("token", None, None, None) is None


@pytest.mark.parametrize(
    ("mode", "warned"),
    [(0o600, ""), (0o640, ""), (0o644, "may read"), (0o604, "may read"), (0o660, "may write")],
)
def test_exposed_files_are_warned_about(
    mode: int, warned: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = private(tmp_path, "gate", f"rtsp://u:{PASSWORD}@h/x\n")
    file.chmod(mode)
    site_from(tmp_path, SMALL.replace('url = "rtsp://10.0.0.5/x"', 'url_file = "gate"'))
    assert (warned in caplog.text) if warned else not caplog.records
    assert PASSWORD not in caplog.text


def test_a_readable_site_file_with_a_password_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "site.toml"
    two = SMALL + GATE.replace("gate", "yard")
    for text, expected in [(two, 0), (two.replace("//10", f"//u:{PASSWORD}@10", 1), 1)]:
        file.write_text(text)
        file.chmod(0o644)
        load_site(file)
        assert len(caplog.records) == expected
    assert "every user may read it (mode 644); chmod 640" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    ("address", "hidden"),
    [
        ("rtsp://10.0.0.5/x", set()),
        ("rtsp://user@10.0.0.5/x", set()),
        ("clip.mp4", set()),
        ("/data/a=b@c.mp4", set()),
        ("rtsp://u:pw@h/x", {"pw", "u:pw", "dTpwdw=="}),
        ("rtsp://u:p@s/s#1@h/x", {"p@s/s#1"}),
        ("rtsp://u:p%40s@h/x", {"p%40s", "dTpwJTQwcw==", "dTpwQHM="}),
        ("http://h/x.cgi?usr=me&pwd=hunter2&channel=1", {"hunter2"}),
        ("http://h/x?access_token=abc.def", {"abc.def"}),
        ("http://h/x?X-Amz-Signature=abcdef", {"abcdef"}),
        ("gst:rtspsrc location=rtsp://u:pw@h/x ! decodebin", {"pw", "u:pw"}),
        ('gst:rtspsrc location=rtsp://h/x user-id=me user-pw="a b" ! decodebin', {"a b"}),
    ],
)
def test_parts_of_an_address_that_are_secret(address: str, hidden: set[str]) -> None:
    parts = secret_parts(address)
    assert hidden <= parts if hidden else not parts
    assert not {"1", "me", "u", "user"} & parts


def test_a_password_on_the_command_line_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    warn_on_command_line("camera gate", "rtsp://10.0.0.5/x")
    assert not caplog.records
    warn_on_command_line("camera gate", f"rtsp://u:{PASSWORD}@10.0.0.5/x")
    assert "camera gate: its password stands on the command line" in caplog.text
    assert PASSWORD not in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    warn_on_command_line("gallery", f"postgresql://s3clip:{PASSWORD}@db.example/people", "gallery_url")
    assert "gallery: its password stands on the command line" in caplog.text
    assert "use --site with gallery_url_env or gallery_url_file" in caplog.text
    assert PASSWORD not in caplog.text


# --- reload


def test_nothing_changed(tmp_path: Path) -> None:
    found = changes(site_from(tmp_path, SMALL), site_from(tmp_path, f"{SMALL}open_timeout_s = 5\n"))
    assert found.nothing
    assert found.unchanged == ("gate",)


def test_cameras_that_came_went_changed_and_stayed(tmp_path: Path) -> None:
    def camera(name: str, line: str = "") -> str:
        return GATE.replace("gate", name) + line

    old = site_from(tmp_path, 'bundle = "b"\n' + camera("a") + camera("b") + camera("c") + camera("d"))
    new = 'bundle = "b"\n' + camera("d") + camera("b", "read_timeout_s = 4\n") + camera("e") + camera("a")
    found = changes(old, site_from(tmp_path, new))
    assert (found.added, found.removed, found.changed) == (("e",), ("c",), ("b",))
    assert set(found.unchanged) == {"a", "d"}
    found.check()
    assert str(found).startswith("cameras: 1 added (e), 1 removed (c), 1 changed (b), 2 unchanged")


def test_secrets_count_by_their_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same address from elsewhere keeps the tracks; another password in the same file does not."""
    old = site_from(tmp_path, SMALL)
    monkeypatch.setenv("GATE", "rtsp://10.0.0.5/x")
    moved = site_from(tmp_path, SMALL.replace('url = "rtsp://10.0.0.5/x"', 'url_env = "GATE"'))
    assert changes(old, moved).nothing
    text = SMALL.replace('url = "rtsp://10.0.0.5/x"', 'url_file = "gate"')
    private(tmp_path, "box", "four five six")
    fed = site_from(tmp_path, SMALL + 'detector = "unix:b.sock?token_file=box"\n')
    private(tmp_path, "box", "seven eight nine")
    refed = site_from(tmp_path, SMALL + 'detector = "unix:b.sock?token_file=box"\n')
    assert changes(fed, refed).changed == ("gate",)
    assert "seven eight nine" in refed.secrets()
    assert refed.cameras[0].detector == f"unix:{tmp_path}/b.sock?token_file={tmp_path}/box"
    private(tmp_path, "gate", "rtsp://u:one@h/x")
    before = site_from(tmp_path, text)
    private(tmp_path, "gate", "rtsp://u:two@h/x")
    assert changes(before, site_from(tmp_path, text)).changed == ("gate",)


@pytest.mark.parametrize("key", sorted({key for key, _ in settings_of(Site)}))
def test_every_setting_is_seen_by_a_reload(key: str, example_folder: Path) -> None:
    """Another value of any setting makes a camera change, is applied, or is refused: never overlooked."""
    value = {
        "device": "cpu", "enhance": "off", "threads": 2, "threshold": 0.61, "page.listen": "127.0.0.1:1",
        "gallery_url": None, "gallery_url_env": None, "gallery_url_file": None, "identities.min_quality": 0.4,
        "page.token_file": "other", "page.token_env": None, "outputs.events.fsync": "always",
        "outputs.crops.which": "all", "outputs.mqtt.password_file": "other",
        "outputs.mqtt.password_env": None,
        "outputs.webhook.url_file": "hook", "outputs.webhook.url": None, "outputs.webhook.url_env": None,
        "outputs.webhook.token_file": "other", "outputs.webhook.token_env": None,
        "cameras.url": "rtsp://h/other",
        "cameras.url_env": None, "cameras.url_file": None, "cameras.platform": "aerial",
        "cameras.tracker": "botsort",
        "cameras.decode": "cuda", "cameras.detector": "-", "cameras.tiles": "1x2",
    }  # fmt: skip
    private(example_folder, "other", "another secret")
    private(example_folder, "hook", "https://hooks.example/other")
    tree = tomllib.loads(uncommented(EXAMPLE))
    old = site_of(tree, example_folder)
    if key in value and value[key] is None:  # another way to give the same: covered by the value test above
        return
    *sections, name = key.split(".")
    place: Any = tree
    for section in sections:
        place = place[section]
        if isinstance(place, list):
            place = place[key == "cameras.tiles"]
    shown = place[name]
    other = shown + 1 if isinstance(shown, int | float) else f"{shown}x"
    place[name] = value.get(key, not shown if isinstance(shown, bool) else other)
    found = changes(old, site_of(tree, example_folder))
    assert not found.nothing
    section = ".".join(key.split(".")[:2])
    if key.startswith(("page.", "outputs.video.")) or key in AT_START_ONLY:
        named = {"page.token_file": "page.token", "outputs.video.folder": "outputs.video"}.get(key, key)
        assert found.refused == (named,)
        with pytest.raises(ConfigError, match=rf"{named} can change only at a restart"):
            found.check()
    elif key.startswith("cameras."):
        expected = {"cameras.tiles": ("drone",), "cameras.name": ()}.get(key, ("gate",))
        assert found.changed == expected
        assert len(found.unchanged) == 1
    else:
        applied = section if key.startswith("outputs.") else key.split(".")[0]
        assert found.applied == (applied,)
        assert len(found.unchanged) == 2


def site_of(tree: dict[str, Any], folder: Path) -> Site:
    return Site.model_validate(tree, context={"folder": folder})


def test_the_gallery_of_a_server_is_a_secret_and_counts_by_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = "postgresql://s3clip:hunter2@db.example/people"
    written = site_from(tmp_path, f'gallery_url = "{address}"\n{SMALL}')
    monkeypatch.setenv("GALLERY", address)
    from_variable = site_from(tmp_path, f'gallery_url_env = "GALLERY"\n{SMALL}')
    assert written.gallery_address == from_variable.gallery_address == address
    assert {"hunter2"} < written.secrets()
    assert "hunter2" not in repr(written)
    assert changes(written, from_variable).nothing
    monkeypatch.setenv("GALLERY", address.replace("hunter2", "hunter3"))
    assert changes(written, site_from(tmp_path, f'gallery_url_env = "GALLERY"\n{SMALL}')).refused == (
        "gallery",
    )
    on_disk = site_from(tmp_path, f'gallery = "people.sqlite"\n{SMALL}')
    assert on_disk.gallery_address == tmp_path / "people.sqlite"
    assert changes(written, on_disk).refused == ("gallery",)
    assert not caplog.records
    (tmp_path / "site.toml").write_text(f'gallery_url = "{address}"\n{SMALL}')
    (tmp_path / "site.toml").chmod(0o644)
    load_site(tmp_path / "site.toml")
    assert "every user may read it" in caplog.text


def test_a_section_of_identities_comes_and_goes_by_a_reload(tmp_path: Path) -> None:
    without = site_from(tmp_path, f'gallery = "g"\n{SMALL}')
    empty = site_from(tmp_path, f'gallery = "g"\n{SMALL}[identities]\n')
    travel = '[[identities.travel]]\nfrom = "gate"\nto = "a camera of another box"\nmin_s = 20\n'
    ways = site_from(tmp_path, f'gallery = "g"\n{SMALL}{travel}')
    for old, new in ((without, empty), (empty, without), (empty, ways), (ways, empty)):
        found = changes(old, new)
        assert (found.applied, found.refused, found.unchanged) == (("identities",), (), ("gate",))
    assert without.identities is None
    assert empty.identities is not None
    assert not any((empty.identities.unknowns, empty.identities.grow, empty.identities.keep_crops))


def test_page_and_outputs_that_come_and_go(tmp_path: Path) -> None:
    bare = site_from(tmp_path, SMALL)
    full = site_from(tmp_path, f'{SMALL}[page]\n[outputs.events]\npath = "e"\n')
    assert changes(bare, full).refused == changes(full, bare).refused == ("page.listen",)
    assert changes(bare, full).applied == changes(full, bare).applied == ("outputs.events",)
