"""From the settings of outputs to the outputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from s3clip_runtime.errors import SinkError
from s3clip_runtime.site.model import Site
from s3clip_runtime.site.outputs import EventsOutput, MqttOutput, Outputs, WebhookOutput
from s3clip_runtime.streams.outputs.annotate import FileAnnotator, LiveAnnotator
from s3clip_runtime.streams.outputs.contact_sheet import ContactSheet
from s3clip_runtime.streams.outputs.crops import CropFolder
from s3clip_runtime.streams.outputs.json_lines import JsonLines
from s3clip_runtime.streams.outputs.mqtt import MqttOptions, MqttSink
from s3clip_runtime.streams.outputs.sink import SightingSink
from s3clip_runtime.streams.outputs.webhook import Webhook, WebhookOptions

_MB = 2**20


def sink_makers(outputs: Outputs) -> dict[str, Callable[[], SightingSink] | None]:
    """How to open each output; None where it is off."""
    events, mqtt, hook, crops = outputs.events, outputs.mqtt, outputs.webhook, outputs.crops
    return {
        "events": None if events is None else partial(_open_events, events),
        "mqtt": None if mqtt is None else partial(_open_mqtt, mqtt),
        "webhook": None if hook is None else partial(_open_webhook, hook),
        "crops": None
        if crops is None
        else partial(CropFolder, crops.folder, crops.which, crops.keep_days, crops.max_mb),
    }


def open_sinks(outputs: Outputs) -> dict[str, SightingSink]:
    """The outputs of events; what was opened is closed again when one of them cannot be."""
    with ExitStack() as opened:
        sinks = {}
        for name, make in sink_makers(outputs).items():
            if make is not None:
                sinks[name] = make()
                opened.callback(sinks[name].close)
        opened.pop_all()
    return sinks


def _open_events(settings: EventsOutput) -> JsonLines:
    path = None if str(settings.path) == "-" else settings.path
    rotate_bytes = settings.rotate_mb * _MB
    return JsonLines(path, rotate_bytes=rotate_bytes, keep=settings.keep, fsync=settings.fsync)


def _open_mqtt(settings: MqttOutput) -> MqttSink:
    return MqttSink(
        MqttOptions(
            host=settings.host,
            spool=settings.spool,
            port=settings.port,
            topic=settings.topic,
            status_topic=settings.status_topic,
            user=settings.user,
            password=None if settings.password is None else settings.password.get_secret_value(),
            tls=settings.tls,
            spool_bytes=settings.spool_mb * _MB,
        )
    )


def _open_webhook(settings: WebhookOutput) -> Webhook:
    return Webhook(
        WebhookOptions(
            url=settings.address.get_secret_value(),
            spool=settings.spool,
            token=None if settings.token is None else settings.token.get_secret_value(),
            spool_bytes=settings.spool_mb * _MB,
        )
    )


def open_annotators(site: Site) -> list[FileAnnotator | LiveAnnotator]:
    if site.outputs.video is None:
        return []
    folder = site.outputs.video.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"folder {folder} cannot be made: {error.strerror}; name another one") from error
    made: list[FileAnnotator | LiveAnnotator] = []
    for camera in site.cameras:
        spec = camera.source
        if Path(spec.url).exists() and not spec.url.startswith("/dev/"):
            made.append(FileAnnotator(spec, folder / f"{spec.name}.mp4"))
        else:
            made.append(LiveAnnotator(spec, folder / f"{spec.name}.mkv"))
    return made


def open_contact_sheet(path: Path | None) -> ContactSheet | None:
    if path is None:
        return None
    if not path.parent.is_dir():  # found out before hours of work, not after
        raise SinkError(f"contact sheet {path}: its folder does not exist; create it")
    return ContactSheet(path, "s3clip-run", {})
