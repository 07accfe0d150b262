"""What Ray's errors mean for a worker, without Ray's wrapping."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

_NODE_DIED = "its node has died"


def original_error(error: RayTaskError) -> BaseException:
    """The exception that the worker raised, if it could be pickled; else `error` itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def describe_loss(error: RayError) -> str:
    """Why a worker was lost: the relevant line of Ray's message, which is never the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if _NODE_DIED in line or "exit detail" in line or "exit type" in line]
    text = causes[0].split("exit detail:")[-1].strip() if causes else " ".join(lines)
    return f"{type(error).__name__}: {text[:200]}"


def was_preempted(error: RayError) -> bool:
    """Whether the worker's node was drained and is gone, for which none of the worker's shards is to blame."""
    return isinstance(error, RayActorError) and error.preempted


def is_node_failure(error: RayError) -> bool:
    """Whether a worker was lost while starting because of its node, so that the next worker may well start.

    For some seconds after a node is gone, until Ray detects it, Ray still places workers there.
    """
    return was_preempted(error) or isinstance(error, ActorUnavailableError) or _NODE_DIED in str(error)
