"""Steps that cannot be taken, and how many in a row stop a run."""

from dataclasses import replace

from lightning_byz.census import Arrival
from lightning_byz.errors import TooManyFaults
from lightning_byz.memory import Memory
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.report import Report

PATIENCE = 3
"""Steps in a row that may go untaken before the run stops."""


def after_untaken(memory: Memory, report: Report, defence: Defence, *, counts: bool) -> Memory:
    """Return what is remembered after a step that was not taken; absence alone is no fault.

    Args:
        memory: What was remembered before it.
        report: Why it was not taken.
        defence: The rules.
        counts: Whether a fault counts.

    Raises:
        TooManyFaults: If it was the third in a row.

    """
    census = report.census
    away = census.workers(Arrival.ABSENT)
    sent = [worker for worker in range(defence.workers) if worker not in away]
    told = (
        f"{PATIENCE} steps in a row could not be taken. In the last one, workers {census.workers(Arrival.BROKEN)} sent"
        f" values that are not finite and workers {away} sent nothing, with f = {defence.f:g} of {defence.workers}"
        f" tolerated: {report.reason}. Look for the cause at these workers, or change f."
    )
    return after_fault(memory, told, fault=counts and defence.weight(sent) > 0)


def after_refusal(kept: Memory, report: Report, *, counts: bool) -> Memory:
    """Return what is remembered after a step without an update under arrivals; only more broken weight than f is a fault.

    Args:
        kept: What is remembered of what has arrived.
        report: Why there was no update.
        counts: Whether a fault counts.

    Raises:
        TooManyFaults: If it was the third in a row.

    """
    told = f"{PATIENCE} times in a row more weight was broken than may be: {report.reason}. Look for the cause at these workers, or change f."
    return after_fault(kept, told, fault=bool(counts and report.fault))


def after_fault(memory: Memory, told: str, *, fault: bool) -> Memory:
    """Return what is remembered after a step that was not taken.

    Args:
        memory: What is remembered of it otherwise.
        told: What stops the run if it was the third in a row.
        fault: Whether it counts.

    Raises:
        TooManyFaults: If it was the third in a row that counts.

    """
    if (faults := memory.faults + fault) < PATIENCE:
        return replace(memory, step=memory.step + 1, faults=faults)
    raise TooManyFaults(told)
