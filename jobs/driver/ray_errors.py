"""What Ray's errors say, without Ray's wrapping."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

_NODE_DIED = "its node has died"


def original_error(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, where it could travel."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def loss_in_words(error: RayError) -> str:
    """The line of Ray's message that tells why a worker was lost; the first line never does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if _NODE_DIED in line or "exit detail" in line or "exit type" in line]
    text = telling[0].split("exit detail:")[-1].strip() if telling else " ".join(lines)
    return f"{type(error).__name__}: {text[:200]}"


def had_notice(error: RayError) -> bool:
    """Whether the worker's machine was taken back with notice, which says nothing about the shards it had in hand."""
    return isinstance(error, RayActorError) and error.preempted


def machine_is_to_blame(error: RayError) -> bool:
    """Whether a worker that never worked was lost for a reason that the next one does not share.

    Ray goes on placing workers on a machine until it has noticed, some seconds late, that it is gone.
    """
    return had_notice(error) or isinstance(error, ActorUnavailableError) or _NODE_DIED in str(error)
