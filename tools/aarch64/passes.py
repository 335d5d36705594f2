"""What runs on the emulated machine, on which processor, and what counts as passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# qemu has no Cortex-A78AE. Cortex-A76 takes the same instructions, as far as ggml's kernels go: dot
# products and half floats, no i8mm, no SVE. What is not there ends a program, as on the board.
ORIN = "cortex-a76"
NEWER = "max"

# As different as they come: biases, groups of experts, shared experts, recurrent layers, one expert of
# a token, experts without a gate.
ARCHITECTURES = (
    "qwen3moe", "gpt-oss", "deepseek2", "glm4moe", "granitehybrid", "llama4", "lfm2moe", "qwen3next",
)  # fmt: skip
FORMATS = ("F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4")
WAYS_OF_READING = "test_lossless.py::test_ways_of_reading"

_PYTEST = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider")
_BITS = ("python3", "/project/tools/aarch64/bits.py")
_CLI = ("python3", "-m", "remoe_edge.cli")
_SITES = {False: "/site", True: "/newer"}


@dataclass(frozen=True)
class Pass:
    """One run: what, on which processor, and with which of the two builds of ggml's kernels.

    `page_bytes` other than 0 has the emulator show pages of that size. `says` must stand in the output of
    what is not a run of pytest.
    """

    name: str
    command: tuple[str, ...]
    cpu: str = ORIN
    newer_kernels: bool = False
    page_bytes: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    says: str = ""

    @property
    def is_pytest(self) -> bool:
        """Say whether pytest's closing line counts."""
        return self.command[: len(_PYTEST)] == _PYTEST

    def variables(self) -> dict[str, str]:
        """Return what the emulator and Python are told."""
        page = {"QEMU_PAGESIZE": str(self.page_bytes)} if self.page_bytes else {}
        site = _SITES[self.newer_kernels]
        return {"QEMU_CPU": self.cpu, "PYTHONPATH": site, **page, **self.environment}


def tests(*names: str) -> tuple[str, ...]:
    """Return the command that runs test files, or single tests by pytest's names."""
    return (*_PYTEST, *names)


def lossless(architectures: tuple[str, ...], formats: tuple[str, ...]) -> list[str]:
    """Name tests of tests/test_lossless.py."""
    return [
        *(f"test_lossless.py::test_architecture[{name}]" for name in architectures),
        *(
            f"test_lossless.py::test_format[{name}-{way}]"
            for name in formats
            for way in ("plain", "repacked")
        ),
    ]


def all_passes() -> tuple[Pass, ...]:
    """Return all passes, those that tell most first."""
    answer = (
        *_CLI, "chat", "-p", "What is the sea?", "-n", "16", "--temp", "0", "--cache", "30%",
    )  # fmt: skip
    kernels = lossless(("qwen3moe", "gpt-oss"), FORMATS)
    pages = [*lossless(("qwen3moe",), ("Q4_K",)), WAYS_OF_READING]
    return (
        Pass("doctor", (*_CLI, "doctor"), says="DOTPROD"),
        Pass("chat", answer, says="the"),
        Pass("reading", tests("test_storage.py", "test_gguf.py")),
        Pass("lossless", tests(*lossless(ARCHITECTURES, FORMATS), WAYS_OF_READING)),
        Pass("lossless-64k", tests(*pages), page_bytes=65536),
        Pass("reading-64k", tests("test_storage.py"), page_bytes=65536),
        Pass("memory", tests("test_memory.py")),
        Pass("engine", tests("test_engine.py", "test_cache.py", "test_trace.py")),
        Pass("bits", _BITS, says="digests"),
        Pass("bits-on-newer", _BITS, cpu=NEWER, says="digests"),
        Pass("lossless-newer", tests(*kernels), cpu=NEWER, newer_kernels=True),
        Pass("bits-newer", _BITS, cpu=NEWER, newer_kernels=True, says="digests"),
    )
