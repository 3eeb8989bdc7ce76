"""A child's loop over the connections of one stream."""

from __future__ import annotations

import time

import av
from av.container import InputContainer

from s3clip_runtime.streams.reading.backoff import BACKOFF_S, Backoff, jittered
from s3clip_runtime.streams.reading.connection import Connection, Lost, opened
from s3clip_runtime.streams.reading.gstreamer import PipelineRefused
from s3clip_runtime.streams.reading.hardware import missing
from s3clip_runtime.streams.reading.knock import KNOCK_S, REPLY_S, knock
from s3clip_runtime.streams.reading.link import Link, Message
from s3clip_runtime.streams.reading.pictures import Pictures
from s3clip_runtime.streams.reading.ring import RingWriter
from s3clip_runtime.streams.reading.stored import play_container


def read_live(link: Link, ring: RingWriter) -> None:
    """Read for ever; returns only when the address turned out to be a finite file, at its end.

    Raises:
        Closing: the parent wants an end.
    """
    pictures = Pictures(link, ring)
    backoff, knocker = Backoff(), Knocker(link)
    while True:
        lost = _attempt(link, ring, pictures)
        if lost is None:
            return
        knocker.attempt_ended(lost)
        wait_s = backoff.next_s(lost.lived_s)
        if lost.needs_person:
            wait_s = jittered(BACKOFF_S[1])  # no hammering
        link.tell(Message("failed" if lost.needs_person else "down", reason=lost.reason, wait_s=wait_s))
        if lost.timed_out and link.task.kind == "stream":
            knocker.rest(wait_s)
        else:
            link.rest(wait_s)
        link.tell(Message("connecting"))


def _attempt(link: Link, ring: RingWriter, pictures: Pictures) -> Lost | None:
    task = link.task
    connection = Connection(link, pictures)
    if problem := missing(task.decode):
        return Lost(problem, needs_person=True)
    link.alive(2 * task.open_timeout_s + 2 * task.read_timeout_s)
    try:
        with opened(task) as container:
            if task.kind == "stream" and (container.duration or 0) > 0:
                return _play_file(link, ring, pictures, container)
            return connection.read(container)
    except (av.FFmpegError, OSError, RuntimeError, PipelineRefused) as error:
        return connection.why(error)


def _play_file(link: Link, ring: RingWriter, pictures: Pictures, container: InputContainer) -> Lost | None:
    if container.format.name == "image2":
        return Lost("the address gives a single picture; give the address of a stream", needs_person=True)
    ring.never_drop()
    link.tell(Message(warning="the address gives a file that ends: it is read as a file, without loss"))
    play_container(link, pictures, container)
    return None


class Knocker:
    """Ends a wait as soon as a server that fell silent answers again.

    A server that answers knocks although its stream does not come is left to the back-off, until a knock
    stays unanswered again.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._answered = False
        self._in_vain = False

    def attempt_ended(self, lost: Lost) -> None:
        """Tell how the attempt after the last wait went."""
        self._in_vain = self._answered and lost.lived_s == 0
        self._answered = False

    def rest(self, seconds: float) -> None:
        """Wait, but not longer than until the server answers. Raises `Closing`."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            began_s = time.monotonic()
            self._link.alive(3 * REPLY_S + 2)
            answers = knock(self._link.task.url, min(REPLY_S, max(left_s, 0.5)))
            if answers and not self._in_vain:
                self._answered = True
                return
            self._in_vain &= answers
            pause_s = KNOCK_S - (time.monotonic() - began_s)
            self._link.rest(min(max(pause_s, 0), max(end_s - time.monotonic(), 0)))
