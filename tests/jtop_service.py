"""Stand in for jtop.service: serve the recorded session over its socket protocol, tick by tick.

    python jtop_service.py SOCKET KEY VERSION

The protocol is a `multiprocessing` manager on a unix socket with three shared objects: a queue for
requests, a dictionary with the newest tick, and an event that a tick sets. This one is ours; the
client that the test runs against it is jetson-stats' own. Prints "ready" once it can be reached.
"""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
import time
from multiprocessing.managers import BaseManager, DictProxy, EventProxy
from typing import Any

from recorded.jtop_orin_nx import INIT, TICKS

_TICK_S = 0.05


class Service(BaseManager):
    """Share what the real service shares, under the names that clients ask for."""


def main() -> None:
    """Serve until killed."""
    socket, key, version = sys.argv[1:]
    requests: Any = multiprocessing.Queue()
    event = threading.Event()
    newest: dict[str, Any] = {}

    def answer() -> None:
        while True:
            try:
                request = requests.get(timeout=1)
            except queue.Empty:
                continue
            if "init" in request:  # our own answer, fetched before the client could
                requests.put(request)
                time.sleep(0.001)
            elif "interval" in request:
                requests.put({"init": {**INIT, "version": version}})

    def tick() -> None:
        for each in TICKS:
            newest.update(each)
            event.set()
            time.sleep(_TICK_S)
        while True:  # the last one goes on
            event.set()
            time.sleep(_TICK_S)

    Service.register("get_queue", callable=lambda: requests)
    Service.register("sync_data", callable=lambda: newest, proxytype=DictProxy)
    Service.register("sync_event", callable=lambda: event, proxytype=EventProxy)
    server = Service(address=socket, authkey=key.encode()).get_server()
    newest.update(TICKS[0])
    for work in (answer, tick):
        threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
