"""What the machine does while a model runs: power, temperatures, clocks, memory, storage.

    with Sampler("model.gguf", hz=4) as sampler:
        sampler.measure_idle(3)
        start = sampler.edge()
        ...
        energy = sampler.energy(start, sampler.edge())  # None without a sensor of the total
        print(sampler.latest.as_json(), energy and energy.as_json(n_tokens))

Fields and units: docs/telemetry.md.
"""

from remoe_edge.telemetry.energy import Energy, Idle
from remoe_edge.telemetry.sample import Sample
from remoe_edge.telemetry.sampler import Sampler

__all__ = ["Energy", "Idle", "Sample", "Sampler"]
