"""Send random bodies to a running server: each has to be answered, or refused in the protocol's form.

remoe-edge serve --port 8080 &
python tools/serve_bad_input.py http://127.0.0.1:8080/ --bodies 10000 --seed 1
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import random
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

Ask = Callable[[str, bytes], tuple[int, bytes]]

_HI = [{"role": "user", "content": "hi"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_RIGHT: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": _HI, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 2},
        {"messages": _HI, "max_tokens": 1, "stop": ["a"], "logit_bias": {"7": -100}, "n": 2},
        {"messages": _HI, "max_tokens": 1, "tools": [_TOOL], "tool_choice": "auto"},
        {"messages": _HI, "max_tokens": 1, "response_format": {"type": "json_object"}},
    ],
    "/v1/completions": [{"prompt": "abc", "max_tokens": 1}, {"prompt": [1, 2], "max_tokens": 1}],
    "/v1/responses": [{"input": "hi", "max_output_tokens": 1, "store": False}],
    "/v1/messages": [{"messages": _HI, "max_tokens": 1, "system": "be brief"}],
    "/v1/messages/count_tokens": [{"messages": _HI}],
    "/v1/embeddings": [{"input": "x"}],
    "/tokenize": [{"content": "hello"}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x", "\u0000", "\U0001f600" * 50,
    [], [[]], {}, {"type": "text"}, {"a": {"b": None}}, "x" * 5000, ["x"] * 300,
)  # fmt: skip


def bodies(seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """Make (path, body): requests that were right, with something wrong in most of them."""
    chance = random.Random(seed)
    paths = list(_RIGHT)
    for _ in range(n):
        path = chance.choice(paths)
        kind = chance.random()
        if kind < 0.1:
            yield path, chance.randbytes(chance.randrange(300))
            continue
        body = json.loads(json.dumps(chance.choice(_RIGHT[path])))
        for _ in range(chance.randrange(1, 4)):
            _spoil(body, chance)
        data = json.dumps(body).encode()
        if kind < 0.4:
            data = _damaged(data, chance)
        yield path, data


def _value(chance: random.Random) -> Any:
    return json.loads(json.dumps(chance.choice(_VALUES)))


def _spoil(body: Any, chance: random.Random) -> None:
    """Put another value somewhere, take one away, or add a field."""
    places = list(_places(body))
    how = chance.random()
    holder, key = chance.choice(places) if places else (body, "x")
    if how < 0.6 or not places:
        holder[key] = _value(chance)
    elif how < 0.8:
        del holder[key]
    elif isinstance(holder, dict):
        holder[chance.choice(["stream", "n", "seed", "tools", "\u00e9", "messages", "top_p"])] = (
            _value(chance)
        )
    else:
        holder.append(_value(chance))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _damaged(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(found) + 1)
        how = chance.random()
        if how < 0.4 and at < len(found):
            found[at] = chance.randrange(256)
        elif how < 0.7:
            found[at:at] = chance.choice([b"\xff", b"\xc3(", b"[" * 500, b'"', b"\x00", b"1" * 400])
        else:
            del found[at : at + chance.randrange(20)]
    return bytes(found)


def complaint(path: str, status: int, data: bytes) -> str:
    """Say what is wrong with an answer; "" for nothing."""
    if status == 200:
        return ""
    if not 400 <= status < 500:
        return f"status {status}"
    try:
        found = json.loads(data)
        error = found["error"]
        fields = {"type", "message"} if found.get("type") == "error" else None
        wanted = fields or {"message", "type", "param", "code"}
        is_right = set(error) == wanted and (fields is not None) == path.startswith("/v1/messages")
        return "" if is_right and error["message"] else f"an error of another form: {found}"
    except (ValueError, TypeError, KeyError):
        return f"no error in JSON: {data[:80]!r}"


def sender(url: str, key: str) -> Ask:
    """Make what asks a server."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=600)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    return ask


def run(ask: Ask, seed: int, n: int) -> tuple[collections.Counter[int], list[str]]:
    """Send bodies; count the statuses, and tell of each answer that is wrong."""
    counts: collections.Counter[int] = collections.Counter()
    wrong = []
    for path, body in bodies(seed, n):
        status, data = ask(path, body)
        counts[status] += 1
        why = complaint(path, status, data)
        if why:
            wrong.append(f"{path} {body[:200]!r}: {why}")
    return counts, wrong


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--bodies", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--key", default="none")
    given = parser.parse_args()
    counts, wrong = run(sender(given.url, given.key), given.seed, given.bodies)
    print("\n".join(wrong))
    print(
        f"{given.bodies} bodies: {', '.join(f'{n} x {each}' for each, n in sorted(counts.items()))}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
