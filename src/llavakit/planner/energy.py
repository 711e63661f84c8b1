"""Energy of pictures, and what it costs at a price of a kilowatt-hour.

In: a speed, whose joules are the rated power for the time of an answer, and a price in whatever money. Out: plain
numbers for tables and for JSON, None where a plan has no speed or no pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from llavakit.planner.plans import Speed

__all__ = ["PictureEnergy", "energy_of"]

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class PictureEnergy:
    """Energy of a thousand pictures that are asked about, in kWh; the price of one, and what all cost in its money."""

    kwh_price: float
    kwh_per_1000_images: float | None
    cost_per_1000_images: float | None


def energy_of(speed: Speed | None, kwh_price: float) -> PictureEnergy:
    """Return what a thousand pictures take and cost."""
    if speed is None or speed.joules_per_image is None:
        return PictureEnergy(kwh_price, None, None)
    kwh = 1000 * speed.joules_per_image / _JOULES_PER_KWH
    return PictureEnergy(kwh_price, kwh, kwh * kwh_price)
