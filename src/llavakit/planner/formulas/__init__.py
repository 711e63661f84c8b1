"""Every formula of the planner: numbers in, numbers out.

Written in the subset of Python that `llavakit.planner.javascript` translates for the page: assignments, if, for over a
range or a list, arithmetic, comparisons, attributes of records, lists and dicts, calls of one another and of min, max,
len, range, floor, sqrt and with_field. No state. Names are those of one program: no two modules share one.

Records (`llavakit.planner.records`): ``model`` is a `ModelSizes`, ``quant`` a `QuantSizes`, ``setting`` a `Setting`,
``device`` and ``host`` are `DeviceNumbers`, ``fit`` is a `SpeedFit`, or an `EngineFit` for this package's own engine on
a processor. Bytes are bytes, times seconds, rates per second. A part is a dict of name, bytes, place (number of the
device, or -1 for the host) and basis: "exact" follows from shapes, "logged" reproduces logged figures, "fitted",
"measured" and "assumed" are what they say.
"""

from llavakit.planner.formulas.common import (
    cached_tokens,
    device_weights,
    kv_bytes,
    prompt_tokens,
    slower_of,
    usable_bytes,
)
from llavakit.planner.formulas.engine_memory import llavakit_activation_bytes
from llavakit.planner.formulas.engine_time import row_seconds
from llavakit.planner.formulas.other_memory import compute_buffer_bytes, processor_buffer_bytes
from llavakit.planner.formulas.other_time import operation_cost, prompt_rate
from llavakit.planner.formulas.times import (
    answer_seconds,
    decode_seconds,
    energy_joules,
    first_token_seconds,
    image_seconds,
    prompt_seconds,
    vision_seconds,
)
from llavakit.planner.formulas.verdicts import (
    fits_in,
    largest_context,
    most_device_layers,
    parts_of,
    place_totals,
    usable_places,
    verdict_of,
)

__all__ = [
    "MODULES", "answer_seconds", "cached_tokens", "compute_buffer_bytes", "decode_seconds", "device_weights",
    "energy_joules", "first_token_seconds", "fits_in", "image_seconds", "kv_bytes", "largest_context",
    "llavakit_activation_bytes", "most_device_layers", "operation_cost", "parts_of", "place_totals",
    "processor_buffer_bytes", "prompt_rate", "prompt_seconds", "prompt_tokens", "row_seconds", "slower_of",
    "usable_bytes", "usable_places", "verdict_of", "vision_seconds",
]  # fmt: skip

# In the order in which one may use the other.
MODULES = ("common", "other_memory", "engine_memory", "verdicts", "other_time", "engine_time", "times")
