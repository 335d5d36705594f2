"""A session of jtop.service on an Orin NX, tick by tick, in the form that its clients receive.

Written from the service's data model (units: mW, mV, mA, kB, kHz, percent, °C) and the rails that the
board's INA3221 has; not taken from a device. Five ticks: a model is loaded, and decodes.
"""

from __future__ import annotations

from typing import Any

INIT: dict[str, Any] = {
    "board": {"hardware": {"Module": "NVIDIA Jetson Orin NX (16GB ram)", "L4T": "36.4.3"}},
    "interval": 0.5,
    "memory": "",
    "fan": {"pwmfan": ["quiet", "cool", "manual"]},
    "jc": False,
    "nvpmodel": {
        "models": ["MAXN", "10W", "15W", "25W"],
        "default": {"name": "15W", "id": 2},
    },
}

#        input mW, module mW, SoC mW, GPU %, EMC %, hottest °C, RAM kB
_TICKS = (
    (5_208, 1_004, 1_562, 0.0, 1, 44.5, 2_871_296),
    (6_731, 2_045, 1_770, 0.0, 9, 45.1, 3_402_112),
    (9_846, 4_412, 2_119, 3.1, 31, 47.0, 6_120_448),
    (11_327, 5_569, 2_325, 2.7, 38, 49.3, 6_121_984),
    (12_020, 6_002, 2_402, 2.9, 41, 50.8, 6_122_240),
)


def _rail(power: int, volt: int = 5_072) -> dict[str, Any]:
    return {
        "online": True, "type": "INA3221", "status": "", "volt": volt, "curr": power * 1000 // volt,
        "power": power, "avg": power, "warn": 32_760, "crit": 7_784,
    }  # fmt: skip


def _tick(
    total: int, module: int, soc: int, gpu: float, emc: int, hottest: float, ram: int
) -> dict[str, Any]:
    return {
        "uptime": 86_412.31,
        "cpu": {"total": {"user": 40.0, "idle": 60.0}, "cpu": [{"online": True, "idle": 60.0}] * 8},
        "gpu": {
            "gpu": {
                "type": "integrated",
                "status": {"load": gpu, "railgate": False, "3d_scaling": True},
                "freq": {"cur": 305_937, "min": 306_000, "max": 918_000, "governor": "nvhost_podgov"},
                "power_control": "auto",
            }
        },
        "processes": [],
        "mem": {
            "RAM": {
                "tot": 16_022_184, "used": ram, "free": 2_044_204, "buffers": 91_036,
                "cached": 7_012_880, "shared": 93_184, "lfb": 12,
            },
            "SWAP": {"tot": 8_011_088, "used": 20_480, "cached": 0, "table": {}},
            "EMC": {"cur": 2_133_000, "max": 3_199_000, "min": 204_000, "val": emc, "online": True},
        },
        "engines": {},
        "temperature": {
            "cpu": {"temp": hottest - 0.6, "online": True},
            "gpu": {"temp": -256, "online": False},  # what a rail that is off shows
            "soc0": {"temp": hottest - 2.0, "online": True},
            "tj": {"temp": hottest, "max": 99.0, "online": True},
        },
        "power": {
            "rail": {"VDD_CPU_GPU_CV": _rail(module), "VDD_SOC": _rail(soc)},
            "tot": {**_rail(total), "name": "VDD_IN"},
        },
        "fan": {"pwmfan": {"speed": [33.3], "rpm": [1_841], "profile": "quiet"}},
        "nvp": {"status": [], "thread": False, "model": {"name": "25W", "id": 3}},
    }  # fmt: skip


TICKS = tuple(_tick(*row) for row in _TICKS)
