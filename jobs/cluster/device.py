"""The kinds of device that a worker computes on."""

from __future__ import annotations

from typing import Literal

Device = Literal["cpu", "cuda"]
DeviceChoice = Literal["auto", "cpu", "cuda"]
