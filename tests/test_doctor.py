"""`remoe-edge doctor`: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import resource
from pathlib import Path

import llama_cpp
import pytest

import tiny_moe
from command_line import run
from recorded.trees import ORIN_NX, X86, plant
from remoe_edge import amx, native
from remoe_edge.inspect import doctor
from remoe_edge.inspect.doctor import Check
from remoe_edge.machine.gpu import Gpu

PROMISED = (
    "remoe-edge", "python", "llama.cpp", "ABI", "CPU", "GPU", "AMX", "repacking", "wait policy",
    "OpenSSL", "io_uring", "O_DIRECT", "memlock", "huge pages", "pages ahead", "memory",
    "threads", "power mode", "swap", "memory limits", "page cache", "GPU memory", "CUDA VMM", "storage",
    "read-ahead", "power", "temperatures", "pressure", "model",
    "[jetson]", "[tune]", "[plot]", "[remote]", "[serve]",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("doctor") / "tiny.gguf", "qwen3moe", "Q4_0")


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_every_promised_check_is_there(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "doctor", model, "--json")
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    told = json.loads(outcome.out)
    assert told["can_run"] is True
    checks = {check["name"]: check for check in told["checks"]}
    assert set(checks) == set(PROMISED)
    assert {check["state"] for check in checks.values()} <= {"ok", "off", "info"}
    assert all(check["advice"] for check in checks.values() if check["state"] == "off")
    assert llama_cpp.__version__ in checks["llama.cpp"]["detail"]
    assert str(len(os.sched_getaffinity(0))) in checks["CPU"]["detail"]


def test_people_get_a_line_for_each(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "doctor", model)
    assert outcome.code == 0
    assert [line.split()[0] in ("ok", "off", "info") for line in outcome.out.splitlines()] == [
        True
    ] * len(PROMISED)


def test_a_folder_is_checked_with_a_file_for_a_moment(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path)
    assert found(checks, "O_DIRECT").state in ("ok", "off")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_can_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.storage.tempfile, "NamedTemporaryFile", refuse)
    checks = doctor.examine(tmp_path)
    for name in ("io_uring", "O_DIRECT"):
        assert found(checks, name).detail.startswith("not tried: ")
        assert "Permission denied" in found(checks, name).detail


@pytest.mark.parametrize(
    ("fault", "name"), [("refuse_uring", "io_uring"), ("refuse_direct", "O_DIRECT")]
)
def test_what_storage_refuses_is_off_with_the_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch, fault: str, name: str
) -> None:
    plan = native._core.FaultPlan(**{fault: True})
    reader = functools.partial(native._core.Reader, faults=plan)
    monkeypatch.setattr(native._core, "Reader", reader)
    checks = doctor.examine(model)
    assert found(checks, name).state == "off"
    assert found(checks, name).detail
    assert found(checks, name).advice
    assert doctor.can_run(checks)


def test_a_read_that_fails_is_not_called_ok(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = native._core.FaultPlan(range_file=0, range_bytes=1 << 20)
    reader = functools.partial(native._core.Reader, faults=plan, direct=False)
    monkeypatch.setattr(native._core, "Reader", reader)
    check = doctor.storage._io_uring(model)
    assert check.state == "off"
    assert str(model) in check.detail


def test_the_formats_it_names_are_those_the_engine_would_repack(tmp_path: Path) -> None:
    formats = doctor.computing.repacked_formats()
    for quant in ("Q4_0", "Q8_0", "F16"):
        path = tiny_moe.make(tmp_path / f"{quant}.gguf", "qwen3moe", quant)
        opened = native._core.StreamedModel.open(str(path), repack=True, depth=1)
        assert opened.repacked == (quant in formats), quant


def test_amx_that_is_avoided_or_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "compiler_fault", lambda: "its AMX code crashes")
    monkeypatch.setattr(amx, "avoid", lambda: True)
    check = doctor.computing._amx()
    assert check == Check("AMX", "ok", "avoided, nothing to do: its AMX code crashes")
    monkeypatch.setattr(amx, "avoid", lambda: False)
    check = doctor.computing._amx()
    assert (check.state, check.advice) == ("off", amx.REMEDY)
    assert check.detail.startswith("its AMX code crashes, and something ")
    monkeypatch.setattr(amx, "compiler_fault", lambda: None)
    assert doctor.computing._amx().state == "info"


def test_gpus_are_named_as_llama_cpp_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bool(doctor.gpu.gpus()) == llama_cpp.llama_supports_gpu_offload()
    monkeypatch.setattr(doctor.gpu, "gpus", list)
    monkeypatch.setattr(doctor.gpu, "backends_without_device", list)
    assert "no GPU backend" in doctor.gpu.check().detail
    orin = Gpu("CUDA0", "Orin", True, 5 << 30, 7 << 30)
    monkeypatch.setattr(doctor.gpu, "gpus", lambda: [orin])
    check = doctor.gpu.check()
    assert check.state == "ok"
    assert check.detail == ("CUDA0: Orin, 5,120 MiB of 7,168 MiB free, shared with the processor")


@pytest.mark.parametrize("driver", [False, True])
def test_a_gpu_build_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch, driver: bool) -> None:
    monkeypatch.setattr(doctor.gpu, "gpus", list)
    monkeypatch.setattr(doctor.gpu, "backends_without_device", lambda: ["CUDA"])
    monkeypatch.setattr(doctor.gpu, "_loads", lambda library: driver)
    check = doctor.gpu.check()
    assert check.state == "off"
    assert "built for CUDA" in check.detail
    assert ("libcuda.so.1 is not found" in check.detail) != driver
    assert "driver" in check.advice


def test_the_wait_policy_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.computing._wait_policy().state in ("ok", "off")
    monkeypatch.setattr(native, "WAIT_POLICY", "from the environment: OMP_WAIT_POLICY=ACTIVE")
    assert doctor.computing._wait_policy().state == "off"
    monkeypatch.setattr(native, "WAIT_POLICY", "passive, after a short spin")
    assert doctor.computing._wait_policy().state == "ok"


def test_a_small_memlock_limit_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.memory, "_capable", lambda bit: False)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 << 20, 8 << 20))
    check = doctor.memory._memlock()
    assert check.state == "off"
    assert "8.00 MiB" in check.detail
    assert "ulimit -l" in check.advice
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert doctor.memory._memlock().state == "ok"


def test_kernels_without_huge_pages_or_population_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.memory.kernel_files, "word", lambda path: None)
    monkeypatch.setattr(
        doctor.memory, "_MADV_POPULATE_WRITE", 4711
    )  # what an older kernel makes of 23
    for check in (doctor.memory._huge_pages(), doctor.memory._populating()):
        assert check.state == "off"
        assert check.advice
    assert "Invalid argument" in doctor.memory._populating().detail


def test_an_installation_that_cannot_run_ends_with_1(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    outcome = run(capsys, "doctor", model)
    assert outcome.code == 1
    assert "fail  llama.cpp" in outcome.out
    assert "llama-cpp-python is missing" in outcome.out
    assert "Traceback" not in outcome.err
    assert json.loads(run(capsys, "doctor", model, "--json").out)["can_run"] is False


def test_an_optional_extra_names_what_it_lacks() -> None:
    check = doctor.installation._extra("tune", ("json", "no_such_package_at_all"))
    assert (check.state, check.detail) == ("info", "optional, without no_such_package_at_all")
    assert check.advice == "pip install 'remoe-edge[tune]'"
    assert doctor.installation._extra("tune", ("json",)).state == "ok"


def test_no_such_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no file or folder at" in run(capsys, "doctor", tmp_path / "none").error()


def test_power_and_temperature_sources_are_named(tmp_path: Path) -> None:
    orin, x86, bare = tmp_path / "orin", tmp_path / "x86", tmp_path / "bare"
    bare.mkdir()
    sensors = {
        root.name: {check.name: check for check in doctor.sensors.checks(tmp_path, root)}
        for root in (plant(orin, ORIN_NX), plant(x86, X86), bare)
    }
    power = sensors["orin"]["power"]
    assert (power.state, power.detail) == ("ok", "hwmon: VDD_IN")
    assert "remoe-edge[jetson]" in power.advice
    assert "/run/jtop.sock" in power.advice
    assert sensors["orin"]["temperatures"].detail == "4 zones, tj the hottest at 50.2 °C"
    assert sensors["x86"]["power"].detail == "rapl: package-0 + package-0/dram"
    assert sensors["x86"]["power"].advice == ""
    assert sensors["x86"]["pressure"].state == "ok"
    assert sensors["bare"]["power"].state == "info"
    assert "no RAPL energy counter" in sensors["bare"]["power"].detail
    assert sensors["bare"]["temperatures"].detail == "no thermal zone"
    assert sensors["bare"]["pressure"].detail.startswith("no pressure information")


def test_counters_that_may_not_be_read_and_parts_are_no_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, X86)
    opened = os.open

    def refuse(path: object, *args: int) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", refuse)
    power = found(doctor.sensors.checks(tmp_path, tmp_path), "power")
    assert power.state == "off"
    assert "only parts are measured (amdgpu slowPPT)" in power.detail
    assert "chmod a+r" in power.advice
