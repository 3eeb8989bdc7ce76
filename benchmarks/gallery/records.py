"""What the benchmark of galleries measures, as docs/results-gallery.json holds it."""

from __future__ import annotations

from pydantic import AwareDatetime

from s3clip_runtime.bench.records import Machine, Spread
from s3clip_runtime.inference.records import Record


class SearchRow(Record):
    """One contender with one gallery and one size of batch.

    Attributes:
        ms: wall time of a batch.
        against_product: its time over the one of the product in the same round.
        recall: share of the `TOP` persons of ours that it found; None where it finds nobody.
        bytes_per_vector: memory that the process has more since the vectors came, over their number.
        moment_bytes_per_vector: more for a moment during a search of 32.
    """

    contender: str
    prototypes: int
    batch: int
    ms: Spread
    against_product: Spread
    recall: float | None
    bytes_per_vector: float
    moment_bytes_per_vector: float


class InMemory(Record):
    """Exact search in memory. `foreign_load`: largest share of the cores that other processes took."""

    threads: int
    rounds: int
    foreign_load: float
    rows: tuple[SearchRow, ...]


class IndexRow(Record):
    """Search by the HNSW index alone, at one size and ef_search, in single queries.

    Attributes:
        recall: share of the ten nearest prototypes that it found; `identities` of the ten nearest people.
        person: share of queries whose own person came first.
    """

    prototypes: int
    ef: int
    ms: Spread
    recall: float
    identities: float
    person: float


class SizeRow(Record):
    """`ServerSearch.nearest` at one size, in single queries, exactly and by the index.

    Attributes:
        read_s: to read all vectors into a numpy array.
        build_s: to build the index; `table_mb`, `index_mb` on the disk.
        recall: share of the ten nearest people that it found by the index.
    """

    prototypes: int
    read_s: float
    build_s: float
    table_mb: float
    index_mb: float
    exact: Spread
    indexed: Spread
    recall: float


class OnServer(Record):
    """Search on a PostgreSQL server. `traits`: numbers that made-up people differ in.

    Attributes:
        buffers: the server's shared_buffers; all else is its default.
        m, ef_construction, ef_search: of the index, and of `nearest`.
    """

    dim: int
    traits: int
    queries: int
    buffers: str
    version: str
    m: int
    ef_construction: int
    ef_search: int
    sizes: tuple[SizeRow, ...]
    index: tuple[IndexRow, ...]


class GalleryReport(Record):
    """What was measured on one machine; a part that was not is missing."""

    created: AwareDatetime
    machine: Machine
    in_memory: InMemory | None = None
    on_server: OnServer | None = None
