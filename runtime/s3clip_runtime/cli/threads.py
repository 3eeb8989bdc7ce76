"""How many threads the parts of a run may have, so that its networks ask for no more CPUs than there are."""

from __future__ import annotations

import os
from dataclasses import dataclass

from s3clip_runtime.inference.cpus import usable_cpus


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """CPU threads of the networks, which compute side by side.

    Decoders and the loop that tracks have one thread each besides, and no pool: they idle most of the time.

    Attributes:
        embedder: of its graphs, which run one after the other.
        detector: of each network that finds persons.
    """

    embedder: int
    detector: int


def plan_threads(asked: int | None, *, network: bool, cpus: int | None = None) -> ThreadPlan:
    """Share the CPUs between finding and recognising persons.

    Args:
        asked: threads of each network as the user wants them; obeyed.
        network: a network finds persons. Else the embedder has all CPUs.
        cpus: that this process may use; None counts them.
    """
    if asked is not None:
        return ThreadPlan(asked, asked)
    cpus = usable_cpus() if cpus is None else cpus
    detector = max(cpus // 2, 1)
    return ThreadPlan(max(cpus - detector, 1) if network else cpus, detector)


def one_thread_for_algebra() -> None:
    """Keep NumPy's linear algebra on the thread that asks for it; call it before NumPy is imported.

    The loop multiplies small matrices alone. OpenBLAS would wake a thread a CPU for some of them, which then
    spin beside the networks' threads. A user's own setting stands.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def one_thread_for_pictures() -> None:
    """Keep OpenCV on the thread that asks for it; its pool would have a thread a CPU."""
    import cv2  # its import brings NumPy, which `one_thread_for_algebra` must come before

    cv2.setNumThreads(1)
