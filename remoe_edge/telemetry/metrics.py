"""An engine's and the machine's figures for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import remoe_edge
from remoe_edge.engine.counters import METRICS
from remoe_edge.engine.observers import Step
from remoe_edge.engine.stats import AnswerStats
from remoe_edge.telemetry.families import Family, Histogram
from remoe_edge.telemetry.sample import Sample
from remoe_edge.telemetry.sampler import Sampler

_TPOT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
_TTFT_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)


class Metrics:
    """Count what an engine does; `families` is what Prometheus reads. Safe to use from several threads.

    The sampler is the caller's, who also stops it.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = {}
        self._counts = dict.fromkeys(("answers", "prompt", "generated"), 0)
        self._spent: dict[str, float] = {each.name: 0 for each in METRICS}
        self._decode_s = 0.0
        self._answering = 0
        self._tpot_s, self._ttft_s = Histogram(_TPOT_BOUNDS_S), Histogram(_TTFT_BOUNDS_S)

    # --- what is told ---

    def on_load(self, facts: Mapping[str, Any]) -> None:
        """Take the model and its settings."""
        with self._lock:
            self._facts = dict(facts)

    def on_begin(self, n_prompt: int) -> None:
        """An answer begins."""
        with self._lock:
            self._answering += 1

    def on_step(self, step: Step) -> None:
        """Count a step."""
        with self._lock:
            counts = self._counts
            if step.slots:
                now = {"slots": step.slots, "budget_bytes": step.budget_bytes}
                self._facts = {**self._facts, **now}
            for each in METRICS:
                self._spent[each.name] += getattr(step, each.name)
            if step.phase == "decode":
                counts["generated"] += step.n_tokens
                self._decode_s += step.ms / 1000
                self._tpot_s.observe(step.ms / 1000)
            else:
                counts["prompt"] += step.n_tokens
                if self._answering:  # a prompt ends with the first token
                    counts["generated"] += 1
                    self._ttft_s.observe(step.ms / 1000)

    def on_answer(self, answer: AnswerStats) -> None:
        """Count an answer."""
        with self._lock:
            self._answering -= 1
            self._counts["answers"] += 1

    def on_close(self) -> None:
        """The figures stay as they are."""

    # --- what is shown ---

    def families(self) -> list[Family]:
        """Give everything, as it is now."""
        with self._lock:
            families = self._engine()
        sample = self._sampler.latest
        return families if sample is None else [*families, *machine_families(sample)]

    def power_w(self) -> float | None:
        """Tell the machine's power in watts, None where nothing measures it."""
        sample = self._sampler.latest
        return None if sample is None else sample.power_w

    def _engine(self) -> list[Family]:
        facts, counts = self._facts, self._counts

        def counter(name: str, text: str, value: float) -> Family:
            return Family(f"remoe_edge_{name}_total", "counter", text).add(value)

        def gauge(name: str, text: str, value: float | None) -> Family:
            return Family(f"remoe_edge_{name}", "gauge", text).add(value)

        tpot = Family(
            "remoe_edge_time_per_output_token_seconds", "histogram",
            "Time of each token after the first.",
        )  # fmt: skip
        ttft = Family(
            "remoe_edge_time_to_first_token_seconds", "histogram",
            "Time from the prompt to the first token.",
        )  # fmt: skip
        labels = {
            "version": remoe_edge.__version__,
            "model": str(facts.get("model", "")),
            "policy": str(facts.get("policy") or ""),
            "streamed": "true" if facts.get("streamed") else "false",
        }
        return [
            Family("remoe_edge_info", "gauge", "The engine; always 1.").add(1, **labels),
            counter("answers", "Answers, also those cut short.", counts["answers"]),
            counter("prompt_tokens", "Tokens of prompts computed.", counts["prompt"]),
            counter("generated_tokens", "Tokens generated.", counts["generated"]),
            *(
                counter(
                    each.metadata["metric"],
                    each.metadata["help"],
                    self._spent[each.name] / (1000 if each.metadata["unit"] == "ms" else 1),
                )
                for each in METRICS
            ),
            counter("decode_seconds", "Time of all tokens after the first.", self._decode_s),
            self._tpot_s.add_to(tpot),
            self._ttft_s.add_to(ttft),
            gauge("generating", "1 while an answer is being made.", int(self._answering)),
            gauge("cache_budget_bytes", "Memory that experts may take.", facts.get("budget_bytes")),
            gauge("cache_slots", "Experts that fit the cache.", facts.get("slots")),
        ]


def machine_families(sample: Sample) -> list[Family]:
    """Turn a sample into families, in base units."""

    def grouped(
        name: str, text: str, label: str, values: Mapping[str, float], scale: float = 1.0,
        kind: str = "gauge",
    ) -> Family:  # fmt: skip
        family = Family(f"remoe_edge_{name}", kind, text)
        for key, value in values.items():
            family.add(value * scale, **{label: key})
        return family

    power = Family("remoe_edge_power_watts", "gauge", "Power of the machine, by its sensor.")
    energy = Family(
        "remoe_edge_energy_joules_total", "counter", "Energy since sampling began, by a counter."
    )
    memory = {name: n for name, n in sample.memory_bytes.items() if name != "rss"}
    resident = Family("remoe_edge_resident_memory_bytes", "gauge", "Resident memory of the engine.")
    return [
        power.add(sample.power_w),
        grouped("rail_power_watts", "Power of a rail.", "rail", sample.rails_w),
        energy.add(sample.energy_j),
        grouped("temperature_celsius", "Temperature.", "zone", sample.temperatures_c),
        grouped("clock_hertz", "Clock of a part.", "part", sample.clocks_mhz, 1e6),
        grouped("load_ratio", "Load of a part, 0 to 1.", "part", sample.loads_percent, 0.01),
        grouped("memory_bytes", "Memory of the machine.", "kind", memory),
        resident.add(sample.memory_bytes.get("rss")),
        grouped("page_faults_total", "Page faults of the engine.", "kind", sample.faults, kind="counter"),
        grouped(
            "pressure_ratio", "Share of time that tasks waited, 0 to 1.", "kind",
            sample.pressures_percent, 0.01,
        ),
        grouped(
            "disk_bytes_total", "Bytes of the model's device since sampling began.", "direction",
            sample.disk_bytes, kind="counter",
        ),
        grouped(
            "throttle_events_total", "Times that the machine slowed itself.", "part",
            sample.throttle_events, kind="counter",
        ),
        grouped("fan_ratio", "Speed set for a fan, 0 to 1.", "fan", sample.fans_percent, 0.01),
    ]  # fmt: skip
