"""The rank's side of every runtime: run one probe, and turn whatever happens into a reply."""

import gc
import traceback
from typing import Any, Literal

import torch

from scaler.errors import BadInput, ScalerError
from scaler.records import Record
from scaler.runtime.protocol import Failure, Probe, Rank

Reply = Record | Failure

_SEVERITY = ("workload", "cluster", "out_of_memory", "fault", "peer")


def perform(rank: Rank, probe: Probe, subject: Any, request: Any) -> Reply:
    """Run a probe on this rank; afterwards nothing of it is left in the device's memory."""
    reply: Reply
    try:
        reply = probe(rank, subject, request)
    except Exception as error:
        # Tensors stay alive through the traceback's frames: keep the text only.
        reply = _failure(error)
        traceback.clear_frames(error.__traceback__)
    # A collection takes 0.2 s: after an answer only where a network in a circle would be in the next peak.
    if rank.device.kind == "cuda" or isinstance(reply, Failure):
        gc.collect()
    if rank.device.kind == "cuda":
        torch.cuda.empty_cache()
    return reply


def settle(replies: list[Reply]) -> Reply:
    """Choose what a task of several ranks comes to: its gravest failure, else rank 0's record.

    A rank that fails takes its peers' collectives down; theirs is then not the cause.
    """
    failures = [reply for reply in replies if isinstance(reply, Failure)]
    return min(failures, key=lambda f: _SEVERITY.index(f.kind)) if failures else replies[0]


def _failure(error: Exception) -> Failure:
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, ScalerError):
        kind: Literal["workload", "cluster"] = "workload" if isinstance(error, BadInput) else "cluster"
        return Failure(kind, error.message, error.hint, trace)
    if isinstance(error, torch.OutOfMemoryError):
        return Failure("out_of_memory", str(error), trace=trace)
    lost = isinstance(error, torch.distributed.DistError) or "third_party/gloo" in str(error)
    return Failure("peer" if lost else "fault", f"{type(error).__name__}: {error}", trace=trace)
