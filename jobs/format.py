"""Device hours and money in words: what a run would cost, and what one did cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline.planning.cost import CostEstimate, RunCost


def estimate_lines(estimate: CostEstimate) -> Iterator[str]:
    """What a run would cost, and what that rests on; nothing where there is nothing to do."""
    if not (estimate.concepts or estimate.images):
        return
    if estimate.device_hours is None or estimate.wall_seconds is None:
        yield f"cost: cannot be told yet: {estimate.missing}. After the first shard of the run, `plan` can"
        return
    money = _money(estimate.amount, estimate.currency)
    yield (
        f"cost: about {hours(estimate.device_hours)} on {estimate.device}{money}; "
        f"{duration(estimate.wall_seconds)} with {_count(estimate.workers, 'worker')}"
    )
    rates = [
        f"{rate:.3g} s {what} ({many} measured)"
        for rate, what, many in (
            (estimate.seconds_per_concept, "a trained concept", estimate.measured_concepts),
            (estimate.seconds_per_image, "an image", estimate.measured_images),
        )
        if rate is not None
    ]
    yield f"  from {_count(estimate.runs, 'earlier run')}: {', '.join(rates)}"


def cost_words(cost: RunCost) -> str:
    """What a run did cost: "0.42 device hours, 0.50 USD"."""
    return hours(cost.device_hours) + _money(cost.amount, cost.currency)


def hours(device_hours: float) -> str:
    """ "1.25 device hours"; less than a hundredth of one in seconds."""
    if device_hours < 0.01:
        return f"{device_hours * 3600:.1f} device seconds"
    return f"{device_hours:.2f} device hours"


def duration(seconds: float) -> str:
    """A length of time for people: "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _money(amount: float | None, currency: str | None) -> str:
    if amount is None:
        return ""
    return f", {amount:.2f} {currency}" if amount >= 0.005 or not amount else f", less than 0.01 {currency}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
