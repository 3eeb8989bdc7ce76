"""Settings files: frozen pydantic models filled from TOML, and one message that tells all that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from s3clip_runtime.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

Shown = Callable[[str, object], str | None]
"""From a key and its wrong value to the words that show the value in a message; None shows nothing."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: the file.
        kind: what it is, as errors call it, such as `config`.

    Raises:
        ConfigError: no such file, not readable, or not TOML; then the line is named.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{kind} {path}: no such file; see configs/ for examples") from None
    except OSError as error:
        raise ConfigError(f"{kind} {path}: cannot be read ({error.strerror}); name a readable file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind} {path}: not valid TOML ({error})") from None


def show_any(key: str, value: object) -> str | None:
    """Shows every value."""
    return repr(value)


def validated(
    model: type[Model],
    tree: Mapping[str, Any],
    origin: str,
    *,
    shown: Shown = show_any,
    context: Mapping[str, object] | None = None,
) -> Model:
    """The settings of a tree.

    Args:
        model: what the tree must be.
        tree: as `read_toml` gives it.
        origin: begins the message.
        shown: how wrong values are shown.
        context: pydantic's validation context.

    Raises:
        ConfigError: unknown keys (the nearest known one is named) or bad values, all in one message.
    """
    try:
        return model.model_validate(tree, context=context)
    except ValidationError as error:
        items = cast(list[dict[str, Any]], error.errors(include_url=False))
        problems = "; ".join(_problem(model, tree, item, shown) for item in items)
        raise ConfigError(f"{origin}: {problems}") from None


def _problem(model: type[BaseModel], tree: Mapping[str, Any], item: dict[str, Any], shown: Shown) -> str:
    where = f"{_key_path(tree, item['loc'])}: " if item["loc"] else ""
    key = str(item["loc"][-1]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        near = _nearest(model, item["loc"])
        return f"{where}unknown key" + (f"; did you mean {near}?" if near else "")
    message = str(item["msg"]).removeprefix("Value error, ")
    value = None if isinstance(item["input"], dict) else shown(key, item["input"])
    return f"{where}{message}" + ("" if value is None else f", got {value}")


def _key_path(tree: object, location: Sequence[str | int]) -> str:
    """`a.b`; a table of an array is told by its name or, without one, by its place: `cameras[gate].url`."""
    text = ""
    for part in location:
        if isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
            name = tree.get("name") if isinstance(tree, dict) else None
            # A name with other characters is a fault itself, perhaps an address with its password: not shown.
            plain = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)
            text += f"[{name}]" if plain else f"[number {part + 1}]"
        else:
            tree = tree.get(part) if isinstance(tree, dict) else None
            text += f".{part}" if text else str(part)
    return text


def _nearest(model: type[BaseModel], location: Sequence[str | int]) -> str | None:
    """The known key most like the unknown one, first in its own section and then in all others."""
    own = model
    for part in location[:-1]:
        field = _keys(own).get(str(part))
        own = next(_models_in(field.annotation), own) if field is not None else own
    word = str(location[-1])
    for keys in (list(_keys(own)), list(_all_keys(model))):
        near = difflib.get_close_matches(word, keys, n=1)
        if near:
            return near[0]
    return None


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields as files call them: `from` is no name that Python allows."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _all_keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in _keys(model).items():
        yield name
        for inner in _models_in(field.annotation):
            yield from _all_keys(inner)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a field can hold: in it, in a union or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
