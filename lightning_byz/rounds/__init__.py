"""Rounds: one step of one optimizer, from the local workers' gradients to the aggregate, and all that lives around it."""

from lightning_byz.rounds.aggregation import Aggregation
from lightning_byz.rounds.attackers import Attackers
from lightning_byz.rounds.buffers import WorkerBuffers
from lightning_byz.rounds.checkpoint import MemoryFile
from lightning_byz.rounds.defence import Defence
from lightning_byz.rounds.earlier import EarlierGradients
from lightning_byz.rounds.report import Report
from lightning_byz.rounds.robust import Robust
from lightning_byz.rounds.round import Outcome, Round, Sent, Turn

__all__ = [
    "Aggregation",
    "Attackers",
    "Defence",
    "EarlierGradients",
    "MemoryFile",
    "Outcome",
    "Report",
    "Robust",
    "Round",
    "Sent",
    "Turn",
    "WorkerBuffers",
]
