"""A worker: some experts of a model in memory, computed for engines on other machines."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from remoe_edge import __version__
from remoe_edge.engine.settings import MAX_THREADS
from remoe_edge.errors import InputError, RemoeError
from remoe_edge.files.fingerprint import fingerprint
from remoe_edge.files.keys_file import check_keys_file
from remoe_edge.files.own_gguf import open_model
from remoe_edge.files.path_argument import path_argument
from remoe_edge.machine.processors import default_threads
from remoe_edge.native import _core
from remoe_edge.remote.experts import first_experts, parse_experts
from remoe_edge.units import parse_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

_TICK_S = 0.2  # how soon a signal is noticed while nothing happens


def _hot(profile: Path | None, model: Path) -> list[int]:
    if profile is None:
        return []
    from remoe_edge.profile.kept_profile import KeptProfile

    return [int(each) for each in KeptProfile(Path(profile), model).hot()]


class Worker:
    """Hold the experts that engines may ask for, and answer until `stop`.

    path: the model. experts: see `parse_experts`, or "AUTO" for what engines wish for, beginning with
    what `profile` calls hot. memory: what the experts may take ("4GiB"), computing included. listen:
    HOST:PORT; port 0 takes a free one; beyond this machine `keys` is needed, the worker.pem of
    `remoe-edge keys`. move_rate: what AUTO reads a second ("32MiB"). threads: None takes the cores
    that this process may use. repack: as the engines have it.

    Nothing else of the model is loaded. Raises InputError, BudgetError, ReadError, ModelError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        experts: str,
        memory: str,
        listen: str,
        keys: str | os.PathLike[str] | None = None,
        move_rate: str = "32MiB",
        profile: Path | None = None,
        threads: int | None = None,
        repack: bool = False,
        io: str = "auto",
        direct: bool = True,
    ) -> None:
        path = path_argument("the model's path", path)
        if not os.path.isfile(path):
            raise InputError(f"no model at {path}")
        model = open_model(path)
        if keys is not None:
            check_keys_file(keys)
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise InputError(f"threads are 1 to {MAX_THREADS}, not {threads}")
        auto = experts.strip().upper() == "AUTO"
        if profile is not None and not auto:
            raise InputError("--profile says what AUTO begins with; these experts are named")
        hot = _hot(profile, path)
        chosen = first_experts(model, hot) if auto else parse_experts(experts, model)
        host = _core.check_address(listen, keys is not None).rpartition(":")[0]
        self._native = _core.ExpertWorker.open(
            path,
            experts=chosen,
            budget_bytes=parse_bytes(memory),
            listen=listen,
            engine=__version__,
            fingerprint=fingerprint(model),
            keys="" if keys is None else keys,
            chosen_by_engines=auto,
            move_bytes_per_s=parse_bytes(move_rate),
            threads=threads or default_threads(),
            repack=repack,
            backend=io,
            direct=direct,
        )
        self.n_experts = self._native.counts()["experts"]
        self.capacity = self._native.n_slots if auto else 0
        self.address = f"{host}:{self._native.port}"
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise RemoeError(
                f"no thread to serve in: {error} (a limit on threads: ulimit -u, or the container's)"
            ) from None

    def _run(self) -> None:
        try:
            self._native.run()
        except BaseException as error:
            self._failure = error

    @property
    def budget_bytes(self) -> int:
        """Give the bytes that the experts take."""
        return self._native.budget_bytes

    def counts(self) -> dict[str, int]:
        """Count engines connected now, answers, rows, and asks turned away or too late."""
        return self._native.counts()

    def check(self) -> None:
        """Sum an expert and compute a row again, in turn. Raises ModelError where bits have changed."""
        self._native.check()

    def take_lines(self) -> list[str]:
        """Take the lines for the user since the last call: who was refused, what could not be read."""
        return self._native.take_lines()

    def stop(self) -> None:
        """Take no more asks; those that wait are still answered."""
        self._native.stop()

    def wait(self, look: Callable[[], object] = lambda: None) -> None:
        """Wait until the worker has stopped; `look` is called a few times a second."""
        while self._thread.is_alive():
            self._thread.join(_TICK_S)
            look()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.wait()
