"""What the simulator is told: a placement, the network, starts, storage, and the requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from remoe_edge.placement.bill import Bill
from remoe_edge.placement.planner import Placement
from remote_experiments.simulator.memory import Memory
from remote_experiments.simulator.sharing import Sharing

FUNCTIONS, STORAGE = "functions", "storage"


@dataclass(frozen=True)
class Arrival:
    """Hold one request: when it comes, and where each of its tokens is routed, [layer, token, k]."""

    at_ms: float
    routed: npt.NDArray[np.integer]
    n_prompt: int


@dataclass(frozen=True)
class Starts:
    """Hold how long starts take, and how long an idle replica or host is kept.

    A main host boots and then loads its memory; `sigma` is the spread of a function's start, in
    logarithms around `function_ms`.
    """

    function_ms: float = 0.0
    sigma: float = 0.0
    main_boot_ms: float = 0.0
    load_bytes_per_s: float = math.inf
    keep_ms: float = 60_000.0


@dataclass(frozen=True)
class World:
    """Hold everything but the requests.

    missing: where what the main host lacks comes from. row_ms: the true time of a row on each function,
    where it is not the plan's. jitter: spread of a round trip, in logarithms around the median.
    hedge_ms: storage is asked too when an answer is so much later than its transfers and the planned
    computing (None: never). always_on: nothing
    is started or stopped. lease: a request starts all functions as it comes, and keeps them to its end;
    without, each starts when it is first called. sharing: host and functions are processes of one
    machine, one replica of each, all of them on.
    """

    placement: Placement
    memory: Callable[[], Memory]
    missing: str = FUNCTIONS
    row_ms: tuple[float, ...] | None = None
    round_trip_ms: float | None = None
    jitter: float = 0.0
    storage_bytes_per_s: float = math.inf
    hedge_ms: float | None = None
    starts: Starts = field(default_factory=Starts)
    always_on: bool = False
    lease: bool = True
    n_hosts: int = 1
    main_bytes: int | None = None
    sharing: Sharing | None = None
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """Hold what one request got, in milliseconds."""

    at_ms: float
    waited_ms: float  # for a host, and its start
    ttft_ms: float  # from its arrival
    tpot_ms: float
    done_ms: float


@dataclass(frozen=True)
class Outcome:
    """Hold what happened."""

    served: tuple[Served, ...]
    bill: Bill
    calls: int
    function_starts: int
    main_starts: int
    function_waits_ms: float
    missing: int  # experts that the main host lacked, of all steps
    hedged: int  # of those, how many storage answered first
