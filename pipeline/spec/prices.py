"""Prices of devices, from which plans and summaries compute costs."""

from __future__ import annotations

from pydantic import Field

from ...core.settings import Settings


class Prices(Settings):
    """Prices of devices, for the costs in `plan`, `status` and a run's summary. They do not affect the run."""

    device_hour: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="price of one device hour (a worker's GPU or CPU core); null: no costs are shown",
    )
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", description="ISO 4217 code, such as USD or EUR")

    def of(self, device_hours: float) -> float | None:
        """The price of `device_hours`, or None if no price is set."""
        return None if self.device_hour is None else round(self.device_hour * device_hours, 4)
