"""What tells power, temperatures and pressure here."""

from __future__ import annotations

from pathlib import Path

from remoe_edge.inspect.doctor.check import INFO, OFF, OK, Check
from remoe_edge.machine.jetson import is_jetson


def checks(path: Path, root: Path = Path("/")) -> list[Check]:
    """Ask the sampler itself what it finds, so that telemetry has what is promised here."""
    from remoe_edge.telemetry import Sampler

    with Sampler(path, root=root) as sampler:
        sample, missing, sources = sampler.latest, sampler.missing, sampler.sources
        power_source = sampler.power_source
    temperatures = {} if sample is None else sample.temperatures_c
    pressure = (
        Check("pressure", OK, "the kernel tells memory and I/O pressure (PSI)")
        if "pressure" in sources
        else Check("pressure", INFO, missing["pressure"])
    )
    return [
        _power(power_source, missing, sample.rails_w if sample else {}, root),
        _temperatures(temperatures, missing),
        pressure,
    ]


def _power(
    source: str | None, missing: dict[str, str], rails_w: dict[str, float], root: Path
) -> Check:
    jetson = is_jetson(root)
    advice = ""
    if jetson and "jtop" in missing:
        advice = (
            "for EMC too: pip install 'remoe-edge[jetson]', and jtop.service (sudo jtop "
            "--install-service), which a container reaches by -v /run/jtop.sock:/run/jtop.sock"
        )
    if source is not None:
        return Check("power", OK, source, advice)
    why = "; ".join(missing[name] for name in ("jtop", "hwmon", "rapl") if name in missing)
    if rails_w:
        why = f"only parts are measured ({', '.join(rails_w)}); {why}"
    refused = missing.get("rapl", "").partition("may not be read: ")[2]
    if refused:
        return Check("power", OFF, why, refused)
    if jetson:
        return Check("power", OFF, why, advice or "energy is not measured")
    return Check("power", INFO, f"energy is not measured: {why}")


def _temperatures(temperatures_c: dict[str, float], missing: dict[str, str]) -> Check:
    if not temperatures_c:
        return Check("temperatures", INFO, missing.get("thermal zones", "none is told"))
    hottest = max(temperatures_c, key=lambda name: temperatures_c[name])
    n = len(temperatures_c)
    return Check(
        "temperatures", OK,
        f"{n} {'zone' if n == 1 else 'zones'}, {hottest} the hottest at {temperatures_c[hottest]:.1f} °C",
    )  # fmt: skip
