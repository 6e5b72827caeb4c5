"""YAML as a grid is written: no key twice, and 1e-3 is a number."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from lightning_byz.mistakes import explain


class GridMistake(ValueError):
    """What is wrong with a grid or its command, in one sentence; the command ends with status 2."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build the mapping of a node."""
        keys = [str(key.value) for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise GridMistake(f"{twice[0]} stands twice in the mapping at line {line}: keep one of them.")
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {  # a day such as 2024-01-31 stays the text it is
    letter: [one for one in known if one[0] != "tag:yaml.org,2002:timestamp"]
    for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # YAML 1.2's numbers, as the configs of fits are read
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+0123456789.")
)


def read(path: Path, kind: str) -> dict[str, Any]:
    """Return the mapping in a file.

    Args:
        path: The file.
        kind: What it is, for messages.

    Raises:
        GridMistake: If it is not there, is no YAML, or holds something else.
    """
    try:
        with path.open("rb") as file:
            found = yaml.load(file, _Loader)
    except FileNotFoundError:
        raise GridMistake(f"there is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GridMistake(f"{kind} {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        said = explain(f"Problems parsing config: {error}").replace("the config", "the file")
        raise GridMistake(f"{path}: {said}") from None
    except GridMistake as mistake:
        raise GridMistake(f"{path}: {mistake}") from None
    if not isinstance(found, dict):
        held = "it is empty" if found is None else f"it holds {str(found)[:60]!r}"
        raise GridMistake(f"{kind} {path} has no keys such as base, grid and seeds: {held}.")
    return found


def value_of(text: str) -> Any:
    """Return a value as a grid would write it.

    Example:
        >>> value_of("1e-3"), value_of("[6, 7]"), value_of("folder/with/mnist")
        (0.001, [6, 7], 'folder/with/mnist')
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise GridMistake(f"{text!r} is no value: write it as in YAML, with quotes around odd characters.") from None
