"""Device hours, money and sizes for people; and what a run is estimated to cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.plural import plural
from ..pipeline.run.duration import format_duration

if TYPE_CHECKING:
    from ..pipeline.planning.cost import CostEstimate, RunCost

_BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def estimate_lines(estimate: CostEstimate) -> Iterator[str]:
    """The estimated cost of a run, and the measurements it is based on; no lines for a run without work."""
    if not (estimate.concepts or estimate.images):
        return
    if estimate.device_hours is None or estimate.wall_seconds is None:
        yield f"cost: cannot be estimated yet: {estimate.missing}. After the first shard of the run, `plan` can"
        return
    money = _format_money(estimate.amount, estimate.currency)
    yield (
        f"cost: about {format_hours(estimate.device_hours)} on {estimate.device}{money}; "
        f"{format_duration(estimate.wall_seconds)} with {plural(estimate.workers, 'worker')}"
    )
    rates = [
        f"{rate:.3g} s {what} ({count} measured)"
        for rate, what, count in (
            (estimate.seconds_per_concept, "a trained concept", estimate.measured_concepts),
            (estimate.seconds_per_image, "an image", estimate.measured_images),
        )
        if rate is not None
    ]
    yield f"  from {plural(estimate.runs, 'earlier run')}: {', '.join(rates)}"


def format_cost(cost: RunCost) -> str:
    """The cost of a run, such as "0.42 device hours, 0.50 USD"."""
    return format_hours(cost.device_hours) + _format_money(cost.amount, cost.currency)


def format_hours(device_hours: float) -> str:
    """Device hours, such as "1.25 device hours"; less than a hundredth of one in device seconds."""
    if device_hours < 0.01:
        return f"{device_hours * 3600:.1f} device seconds"
    return f"{device_hours:.2f} device hours"


def format_size(count: int) -> str:
    """A number of bytes, such as "512 bytes" or "1.5 GB"."""
    amount, unit = float(count), 0
    while amount >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{count} bytes" if unit == 0 else f"{amount:.3g} {_BYTE_UNITS[unit]}"


def _format_money(amount: float | None, currency: str | None) -> str:
    if amount is None:
        return ""
    return f", {amount:.2f} {currency}" if amount >= 0.005 or not amount else f", less than 0.01 {currency}"
