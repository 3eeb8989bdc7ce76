"""Make the demo that the runtime ships: train the tiny model, export it, film the two videos.

    make demo-data

Training resumes when it was stopped. The videos show people whom the model never saw.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path

from s3clip.config import load_config
from s3clip.synthetic import write_videos
from s3clip.train import train
from s3clip_export.origin import origin_of_run
from s3clip_export.write import Wanted, export

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "runtime" / "s3clip_runtime" / "demo"
VIDEO_SEED = 5
PEOPLE = 7
SECONDS = 20.0
REFERENCE = 6
"""Tracklets kept in the bundle: enough for s3clip-doctor, and small enough for a wheel."""
MAX_BUNDLE_BYTES = 6_000_000
MAX_VIDEO_BYTES = 2_000_000


def size_of(paths: list[Path]) -> int:
    """Bytes of all files together."""
    return sum(path.stat().st_size for path in paths)


def main() -> None:
    """Train, export, film; replace the packaged files only when all is there and small enough."""
    run = ROOT / "runs" / "synthetic"
    train(load_config(ROOT / "configs" / "synthetic.toml"), run, threading.Event())
    with tempfile.TemporaryDirectory(dir=DEMO.parent) as folder:
        fresh = Path(folder)
        origin = origin_of_run(run)
        export(origin, fresh / "bundle", data=origin.config.data, wanted=Wanted(reference=REFERENCE))
        write_videos(fresh, seed=VIDEO_SEED, identities=PEOPLE, seconds=SECONDS)
        bundle, videos = size_of(list((fresh / "bundle").iterdir())), size_of(list(fresh.glob("*.mp4")))
        print(f"bundle {bundle / 1e6:.2f} MB, videos {videos / 1e6:.2f} MB")
        if bundle > MAX_BUNDLE_BYTES or videos > MAX_VIDEO_BYTES:
            raise SystemExit(f"too large for a wheel: at most {MAX_BUNDLE_BYTES} and {MAX_VIDEO_BYTES} bytes")
        shutil.rmtree(DEMO / "bundle", ignore_errors=True)
        for item in fresh.iterdir():
            target = DEMO / item.name
            target.unlink(missing_ok=True)
            shutil.move(item, target)


if __name__ == "__main__":
    main()
