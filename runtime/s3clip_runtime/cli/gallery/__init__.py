"""`s3clip-gallery`: who is in a gallery, add and find people, correct it, forget them, keep it.

The heavy imports sit in the commands: `--help` answers at once and without onnxruntime.
"""

from __future__ import annotations

import click

from s3clip_runtime.cli.errors import Group
from s3clip_runtime.cli.gallery import editing, enrolling, erasing, keeping, looking, modelling


@click.group(name="s3clip-gallery", cls=Group)
def main() -> None:
    """Look after a gallery of people.

    GALLERY is a file, or a postgresql:// address of a gallery that several boxes share, or env:NAME: the
    address in the environment variable NAME, for one with a password.
    """


for _command in (
    keeping.create,
    enrolling.enrol,
    enrolling.enrol_folder,
    enrolling.enrol_video,
    looking.list_identities,
    looking.show,
    looking.search,
    looking.log,
    looking.info,
    editing.name,
    editing.note,
    editing.merge,
    editing.split,
    editing.undo,
    erasing.forget,
    erasing.verify_receipt,
    erasing.expire,
    keeping.backup,
    keeping.restore,
    keeping.make_key,
    modelling.calibrate,
    modelling.add_model,
    modelling.retire_model,
    modelling.index,
):
    main.add_command(_command)
main.add_command(editing.name, "rename")
