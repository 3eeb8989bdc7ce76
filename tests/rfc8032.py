"""Ed25519 written out from RFC 8032, slow and obvious: the independent truth of signatures."""

from __future__ import annotations

import hashlib

RFC_8032 = [  # 7.1, tests 1 and 2: secret key, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
]

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]
BASE: Point = (
    15112221349535400772501151409588531511454012693041857206046113283949847762202,
    46316835694926478169428394003475163141307993866256225615783033603165251855960,
)


def plus(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    bend = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + bend, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - bend, -1, P) % P


def multiple(number: int, point: Point) -> Point:
    total: Point = (0, 1)
    for bit in f"{number:b}":
        total = plus(total, total)
        if bit == "1":
            total = plus(total, point)
    return total


def encoded(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def slow_ed25519(secret: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Public key and signature: RFC 8032, 5.1.5 and 5.1.6, in affine coordinates."""
    digest = hashlib.sha512(secret).digest()
    scalar = int.from_bytes(digest[:32], "little") & ((1 << 254) - 8) | 1 << 254
    public = encoded(multiple(scalar, BASE))
    nonce = int.from_bytes(hashlib.sha512(digest[32:] + message).digest(), "little") % ORDER
    commitment = encoded(multiple(nonce, BASE))
    challenge = int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little")
    return public, commitment + ((nonce + challenge * scalar) % ORDER).to_bytes(32, "little")
