#!/usr/bin/env python3
"""Pass bytes on between an engine and a worker, each way later by a delay that varies.

    python tools/remote_experiments/relay.py HOST:PORT DELAY_MS JITTER SEED

Prints the address it listens at. DELAY_MS is one way; JITTER is its spread in logarithms around that.
What comes later never overtakes what came before, as in TCP.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time


class Relay:
    """Hold where bytes go to, and how late."""

    def __init__(self, address: str, delay_ms: float, jitter: float, seed: int) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._delay_s, self._jitter = delay_ms / 1000, jitter
        self._random = random.Random(seed)

    def delay_s(self) -> float:
        """Draw a delay."""
        return self._delay_s * math.exp(self._jitter * self._random.gauss(0, 1))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Join one connection to one of its own."""
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

        async def write() -> None:
            while True:
                due, data = await queue.get()
                wait_s = due - loop.time()
                if wait_s > 0:  # in a thread: the loop's own timers round up to a millisecond
                    await loop.run_in_executor(None, time.sleep, wait_s)
                if not data:
                    writer.close()
                    return
                writer.write(data)
                await writer.drain()

        writing = asyncio.create_task(write())
        last = 0.0
        try:
            while True:
                data = await reader.read(1 << 16)
                last = max(last, loop.time() + self.delay_s())
                queue.put_nowait((last, data))
                if not data:
                    break
            await writing
        except (ConnectionError, OSError):
            writing.cancel()
            writer.close()


async def main() -> None:
    """Listen until killed."""
    address, delay_ms, jitter, seed = sys.argv[1:5]
    relay = Relay(address, float(delay_ms), float(jitter), int(seed))
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
