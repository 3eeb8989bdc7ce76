"""How all commands fail: an expected error is one line on stderr and exit 2, a bug shows its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from s3clip_runtime.errors import ConfigError, S3ClipError


class Command(click.Command):
    """A click command whose S3ClipErrors become one line. Give it the program's name: `name="s3clip-run"`."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's own signature
        """Run the command."""
        with _one_line_errors(ctx):
            return super().invoke(ctx)


class Group(click.Group):
    """A click group whose S3ClipErrors, also those of its subcommands, become one line."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's own signature
        """Run the group and the chosen subcommand."""
        with _one_line_errors(ctx):
            return super().invoke(ctx)


class DefaultGroup(Group):
    """A group in which `PROGRAM X` is short for `PROGRAM DEFAULT X` where X is no subcommand.

    Args:
        default: the subcommand's name.
    """

    def __init__(self, *args: Any, default: str, **kwargs: Any) -> None:  # noqa: ANN401  click's own
        super().__init__(*args, **kwargs)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default in front of anything that is no subcommand."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self._default, *args]
        return super().parse_args(ctx, args)


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around a command's heavy imports: a missing package becomes a ConfigError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{error.name} is not installed; this command needs: pip install "s3clip[{extra}]"'
        ) from error


class _CleanFailure(click.ClickException):
    exit_code = 2

    def __init__(self, program: str, message: str) -> None:
        super().__init__(message)
        self.program = program

    def show(self, file: IO[Any] | None = None) -> None:
        line = " ".join(self.message.splitlines())
        click.echo(f"{self.program}: error: {line}", file=file, err=True)


@contextmanager
def _one_line_errors(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except S3ClipError as error:
        raise _CleanFailure(ctx.find_root().command.name or "s3clip", str(error)) from error
