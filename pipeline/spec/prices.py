"""What devices cost, so that plans and summaries can say what a run costs."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class Prices(Settings):
    """What devices cost, for `plan`, `status` and a run's summary. Nothing that a run does depends on it."""

    device_hour: float | None = Field(
        default=None, ge=0, le=1e6, description="the price of one worker's device for an hour; null: no money is shown"
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="three letters, such as USD or EUR")

    def of(self, device_hours: float) -> float | None:
        """The price of so many device hours, if there is one."""
        return None if self.device_hour is None else round(self.device_hour * device_hours, 4)
