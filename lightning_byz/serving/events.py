"""What happens to workers, and how it is said."""

from typing import NamedTuple


class Event(NamedTuple):
    """What happened to a worker.

    Args:
        worker: The worker.
        word: ``came``, ``ready``, ``silent``, ``unreachable``, ``back``, ``lost``, ``error``, ``differs`` or ``restarted``.
        text: What else is known of it.

    """

    worker: int
    word: str
    text: str


FATAL = ("error", "differs", "ended")
"""What stops a run that has not begun."""
SAID = {
    "ended": "is gone: its process {}. Its last message keeps the weight that it has earned.",
    "restarted": "is started again, with an empty memory.",
    "silent": "has sent nothing for {deadline:g} s and is left out: its last message keeps the weight that it has earned, and it may come back.",
    "unreachable": "cannot be reached and is left out: its last message keeps the weight that it has earned, and it may come back.",
    "back": "is back.",
    "error": "has ended with an error, and its last message keeps the weight that it has earned:\n{}",
    "differs": "runs another {} than the server, and nothing of it is used.",
}
"""What is worth a warning, and how it is said."""


def refused(event: Event) -> str:
    """Say why a run cannot start."""
    if event.word == "differs":
        return (
            f"Worker {event.worker} has another {event.text} than the server, whose parameters and messages would not be the same: start it from"
            " the same code with the same versions."
        )
    if event.word == "ended":
        return f"Worker {event.worker} took no turn, so that no update was made: its process {event.text}."
    return f"Worker {event.worker} could not take its first turn, so that no update was made:\n{event.text}"
