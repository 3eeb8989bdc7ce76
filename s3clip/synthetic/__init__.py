"""A world of procedural people seen by ground and aerial cameras: data for tests, demos and tiny models.

It exists because no public data set may be shipped with the project. It shows that a pipeline learns and
ranks; its scores say nothing about real people.

    write_dataset(Path("world"), seed=1, train_identities=120, test_identities=60)
    write_videos(Path("videos"), seed=1, identities=7, seconds=20)
"""

from s3clip.synthetic.camera import CameraConfig
from s3clip.synthetic.person import Appearance, sample_appearance
from s3clip.synthetic.scene import Actor, Scene, Truth
from s3clip.synthetic.videos import write_videos
from s3clip.synthetic.world import dataset_cameras, write_dataset

__all__ = [
    "Actor",
    "Appearance",
    "CameraConfig",
    "Scene",
    "Truth",
    "dataset_cameras",
    "sample_appearance",
    "write_dataset",
    "write_videos",
]
