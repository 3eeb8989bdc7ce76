"""H.264 as RTP packets (RFC 6184), and the sender's reports that tell the time (RFC 3550)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

CLOCK = 90_000
"""RTP ticks a second of video."""

PAYLOAD = 1400
"""Most bytes of a payload, so that packets fit an Ethernet frame."""

PAYLOAD_TYPE = 96

_NTP_EPOCH_S = 2_208_988_800
"""Seconds from 1900 to 1970."""


def payloads(units: list[bytes]) -> list[bytes]:
    """The NAL units of one frame as payloads: whole where they fit, else as fragments (FU-A)."""
    out = []
    for unit in units:
        if len(unit) <= PAYLOAD:
            out.append(unit)
            continue
        indicator, kind = unit[0] & 0xE0 | 28, unit[0] & 31
        pieces = [unit[start : start + PAYLOAD - 2] for start in range(1, len(unit), PAYLOAD - 2)]
        for place, piece in enumerate(pieces):
            mark = 0x80 * (place == 0) | 0x40 * (place == len(pieces) - 1)
            out.append(bytes([indicator, mark | kind]) + piece)
    return out


@dataclass
class Sender:
    """Counts the packets of one receiver.

    Attributes:
        source: SSRC, names the sender.
        sequence: number of the next packet; a packet that is lost on purpose counts too.
    """

    source: int
    sequence: int
    packets: int = 0
    octets: int = 0

    def packet(self, payload: bytes, ticks: int, *, last: bool) -> bytes:
        """One RTP packet; `last` of its frame."""
        mark = 0x80 if last else 0
        head = struct.pack(
            ">BBHII", 0x80, mark | PAYLOAD_TYPE, self.sequence & 0xFFFF, ticks & 0xFFFFFFFF, self.source
        )
        self.sequence += 1
        self.packets += 1
        self.octets += len(payload)
        return head + payload

    def report(self, unix_s: float, ticks: int) -> bytes:
        """An RTCP sender's report: the time stamp `ticks` was taken at `unix_s`; and who sends."""
        seconds = int(unix_s + _NTP_EPOCH_S)
        fraction = int((unix_s + _NTP_EPOCH_S - seconds) * 2**32)
        numbers = (self.packets & 0xFFFFFFFF, self.octets & 0xFFFFFFFF)
        report = struct.pack(
            ">BBHIIIIII",
            0x80,
            200,
            6,
            self.source,
            seconds & 0xFFFFFFFF,
            fraction,
            ticks & 0xFFFFFFFF,
            *numbers,
        )
        name = struct.pack(">BBHI", 0x81, 202, 3, self.source) + b"\x01\x05camra\x00"
        return report + name
