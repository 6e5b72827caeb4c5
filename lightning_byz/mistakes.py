"""What is wrong with a command line or a config, in one sentence: what was given, what is allowed, what to change."""

import importlib
import re
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy, StrategyRegistry
from torch.optim import Optimizer

from lightning_byz.kinds import (
    annotation_of,
    choices_of,
    classes_of,
    closest,
    described,
    family_of,
    hint,
    listed,
    names_of,
    parameters_of,
    takes_list,
)

COMMANDS = ("fit", "validate", "test", "predict")
_ALL = (*COMMANDS, "compare", "redteam")
_KEYS: dict[str, Any] = {
    "trainer": Trainer,
    "model": LightningModule,
    "data": LightningDataModule,
    "optimizer": Optimizer,
    "seed_everything": bool | int,
    **dict.fromkeys(("config", "print_config", "help", "lr_scheduler", "ckpt_path", "weights_only", "verbose")),
    "return_predictions": bool,
}
_EXAMPLE = "lightning-byz fit --config configs/quickstart.yaml"


@dataclass(frozen=True)
class _Mistake:
    """Where the parser stopped: the class and argument, as far as they are known, and what it said there."""

    owner: str
    key: str
    said: str

    @property
    def kind(self) -> type | None:
        """The class whose argument it is."""
        module, _, name = self.owner.rpartition(".")
        return getattr(importlib.import_module(module), name, None) if module else None

    @property
    def annotation(self) -> Any:
        """What the argument takes; ``None`` where that is not known."""
        if self.owner:
            return annotation_of(self.kind, self.key)
        room, _, name = self.key.partition(".")
        return annotation_of(_KEYS.get(room), name) if name else _KEYS.get(room)


def explain(message: str) -> str:
    r"""Return the parser's message as one sentence, where it wraps the mistake in all that it tried.

    Example:
        >>> explain("Problem with given class_path 'lightning_byz.RobustStrategy':\n  Option 'ff' is not accepted")
        "RobustStrategy has no argument 'ff': did you mean f?"
        >>> explain('Parser key "model":\n  Expected a dot import path string: DigitsClasifier')
        "there is no class 'DigitsClasifier': did you mean DigitsClassifier?"
    """
    for pattern, sentence in ((r"Problems parsing config: ", _yaml), (r"Unexpected config: ?(.*)", _no_mapping)):
        if re.match(pattern, message):
            return sentence(message)
    mistake = _innermost(message)
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, mistake.said):
            return sentence(mistake, found)
    said = " ".join(mistake.said.split())
    return f"{mistake.key}: {said}" if mistake.key and said else " ".join(message.split())


def _innermost(message: str) -> _Mistake:
    """Follow the message to the class and argument it is about, past the alternatives that were tried beside them."""
    owner = key = ""
    lines, start, place = message.splitlines(), 0, 0
    while place < len(lines):
        line = lines[place]
        if problem := re.search(r"Problem with given class_path '([^']+)':(.*)", line):
            owner, key, start = problem[1], "", place + 1
            own = _indent(line)
            end = next((n for n in range(start, len(lines)) if lines[n].strip() and _indent(lines[n]) <= own), None)
            lines = [*lines[: place + 1], *([problem[2]] if problem[2].strip() else []), *lines[start:end]]
        elif found := re.search(r'Parser key "([^"]+)":(.*)', line):
            key, start = found[1], place + 1
            lines[start:start] = [found[2]] if found[2].strip() else []
        place += 1
    return _Mistake(owner, key.removeprefix("fit."), "\n".join(lines[start:]))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _yaml(message: str) -> str:
    place = re.findall(r"line (\d+), column (\d+)", message) or [("?", "?")]
    line, column = place[-1]
    if "tab character" in message or r"'\t'" in message:
        return f"line {line} of the config is indented with a tab: YAML takes spaces only."
    what = [text.strip() for text in message.splitlines() if not re.match(r"\s*in \"", text)][-1]
    what = what.removeprefix("Problems parsing config: ")
    return (
        f"the config is no YAML at line {line}, column {column} ({what}): look there and in the line above for the indent,"
        " the ': ' behind each key, and open brackets."
    )


def _no_mapping(message: str) -> str:
    given = message.partition(":")[2].strip()
    what = f"it holds {given[:60]!r}" if given else "it is empty"
    return f"the config has no keys such as trainer, model and data: {what}."


def _unknown_command(mistake: _Mistake, found: re.Match[str]) -> str:
    near = hint(found["given"], _ALL)
    return f"there is no command {found['given']!r}: {near or f'give {listed(_ALL)}, such as {_EXAMPLE}'}".rstrip(
        "."
    ) + "." * (not near)


def _unknown_argument(mistake: _Mistake, found: re.Match[str]) -> str:
    room, names = found.groupdict().get("room") or "", found["given"].split(".")
    if room in COMMANDS and names[0] == "trainer" and names[1:2] and names[1] not in parameters_of(Trainer):
        room, names = names[0], names[1:]
    kind, name = mistake.kind or _KEYS.get(room), names[0]
    if name in COMMANDS or (room in COMMANDS and name in _KEYS):
        return f"the config has a section {name if name in COMMANDS else room!r}: write the keys in it, such as trainer and model, at its top."
    if kind is None:
        return f"there is no key {name!r}: {hint(name, _KEYS) or 'give trainer, model, data or seed_everything.'}"
    known = list(parameters_of(kind))
    what = f"it takes {', '.join(known)}." if len(known) < 30 else "see lightning-byz fit --help."
    return f"{kind.__name__} has no argument {name!r}: {hint(name, known) or (what if known else 'it takes none.')}"


def _unrecognized(mistake: _Mistake, found: re.Match[str]) -> str:
    words = found["given"].split()
    option = next((word.partition("=")[0] for word in words if word.startswith("-")), None)
    if option is None:
        file = words[0].endswith((".yaml", ".yml"))
        return f"{words[0]!r} is no option: give {f'--config {words[0]}' if file else 'options as --name=value'}."
    first, *rest = option.lstrip("-").split(".")
    near = [first] if first in _KEYS else closest(first, _KEYS)[:1]
    if near == ["trainer"] and rest:
        known = parameters_of(Trainer)
        near += [rest[0]] if rest[0] in known else closest(rest[0], known)[:1]
        near += rest[1:]
    good = len(near) > 1 or (near and not (near == [first] and rest))
    known = "trainer, model, data, config, ckpt_path and seed_everything"
    return f"there is no option {option}: " + (
        f"did you mean --{'.'.join(near if len(near) > 1 else [*near, *rest])}?" if good else f"there are --{known}."
    )


def _missing(mistake: _Mistake, found: re.Match[str]) -> str:
    names = found["given"].strip()
    if mistake.owner:
        return f"{mistake.owner.split('.')[-1]} needs a value for: {names}."
    if names.split(".")[0] in COMMANDS:
        what = names.replace(f"{names.split('.')[0]}.", "")
        return f"no {what} is given: name a file with --config, such as {_EXAMPLE}, or a class with --{what}=."
    return f"{names} needs a value: null is none."


def _unknown_class(mistake: _Mistake, found: re.Match[str]) -> str:
    given, kinds = found["given"], classes_of(mistake.annotation)
    names, noun = names_of(kinds), listed([kind.__name__ for kind in kinds])
    if other := family_of(given):
        return f"{mistake.key}={given}: {given} is no {noun} but of kind {other}; give one of {', '.join(names)}."
    advice = "give the import path of a class, such as my_file.MyClass, or one of this package"
    few = f": {', '.join(names)}." if 0 < len(names) < 25 else "."
    return f"there is no class {given!r}: {hint(given, names) or advice + few}"


def _unknown_strategy(mistake: _Mistake, found: re.Match[str]) -> str:
    names = [*StrategyRegistry.available_strategies(), *names_of([Strategy])]
    return f"there is no strategy {found['given']!r}: {hint(found['given'], names) or 'give ddp, robust or RobustStrategy.'}"


def _other_kind(mistake: _Mistake, found: re.Match[str]) -> str:
    given = found["given"] or _given(mistake.said)
    return f"{given} is no {found['name']}: give one of {', '.join(names_of(classes_of(mistake.annotation)))}."


def _written_wrong(mistake: _Mistake, found: re.Match[str]) -> str:
    given = found.groupdict().get("given", "")
    name = re.match(r"\w*", given)
    sample = name[0] if name and name[0] in names_of(classes_of(mistake.annotation)) else "NAME"
    return (
        f"{mistake.key or 'a class'} is not written as a class{f', but as {given}' * bool(given)}:"
        f" give its name, or {{class_path: {sample}, init_args: {{...}}}} with no other key."
    )


def _wrong_type(mistake: _Mistake, found: re.Match[str]) -> str:
    given, annotation = _given(mistake.said), mistake.annotation
    what = described(annotation, given or "")
    if not what or given is None:
        return f"{mistake.key}: {' '.join(mistake.said.split())}"
    inside = takes_list(annotation) and "collections.abc" not in mistake.said
    near = closest(given, choices_of(annotation))[:1]
    return f"{mistake.key}{' holds ' if inside else '='}{given}: give {what}" + (
        f"; did you mean {near[0]}?" if near else "."
    )


def _given(said: str) -> str | None:
    """Return the value that the parser quotes, the outermost where there are several."""
    found = re.findall(r"(?:Got|Given) value: ([^\n]+)", said)
    return found[-1].strip() if found else None


_SENTENCES = (
    (r"invalid strategy name: `strategy='(?P<given>[^']+)'", _unknown_strategy),
    (r"invalid choice: '(?P<given>[^']+)' \(choose from", _unknown_command),
    (r'expected "subcommand" to be one of', lambda *_: f"give a command: {listed(_ALL)}, such as {_EXAMPLE}."),
    (
        r"is not accepted before subcommand '(?P<given>\w+)'",
        lambda _, found: f"options follow the command: lightning-byz {found['given']} --config FILE.",
    ),
    (r"Option '(?P<given>[^']+)' is not accepted", _unknown_argument),
    (r"(?:Group|Subcommand) '(?P<room>[^']+)' does not accept option '(?P<given>[^']+)'", _unknown_argument),
    (r"unrecognized arguments: (?P<given>.+)", _unrecognized),
    (r"the following arguments are required: (?P<given>[^\n]+)", _missing),
    (
        r"(?P<given>No module named [^\n]+|module [^\n]+ has no attribute [^\n]+)",
        lambda mistake, found: f"there is no class {mistake.owner.split('.')[-1]}: {found['given']}.",
    ),
    (r"File does not exist: '(?P<given>[^']+)'", lambda _, found: f"there is no file {found['given']}."),
    (r"Import path ?(?P<given>\S*) does not correspond to a subclass of (?P<name>\w+)", _other_kind),
    (r"Expected a dot import path string: (?P<given>\S+)", _unknown_class),
    (r"Unexpected import path format: (?P<given>[^\n]+)", _written_wrong),
    (r"Not a valid subclass of|Expected an instantiatable class", _written_wrong),
    (r"Expected a [^\n]*|Given value:", _wrong_type),
)
