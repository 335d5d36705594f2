"""Prometheus figures: the text format to the letter, and the server that gives it out."""

from __future__ import annotations

import http.client
import math
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_moe
from command_line import run, start
from recorded.trees import ORIN_NX, plant
from remoe_edge import Engine
from remoe_edge.errors import InputError
from remoe_edge.telemetry import Sampler

pytest.importorskip(
    "prometheus_client", reason="no prometheus_client: pip install 'remoe-edge[serve]'"
)

from remoe_edge.telemetry import metrics_server
from remoe_edge.telemetry.exposition import text
from remoe_edge.telemetry.families import Family, Histogram
from remoe_edge.telemetry.metrics import Metrics
from remoe_edge.telemetry.metrics_server import MetricsServer, is_loopback, parse_address

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
_UNITS = ("seconds", "bytes", "watts", "joules", "celsius", "hertz", "ratio")


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Read the text format as strictly as it is defined. RETURNS samples, and kinds by family."""
    assert text.endswith("\n")
    samples: Samples = {}
    kinds: dict[str, str] = {}
    family, helped = "", set()
    for line in text.splitlines():
        if match := re.fullmatch(rf"# HELP ({_NAME}) (\S.*)", line):
            family = match[1]
            assert family not in helped, "a family is told once"
            helped.add(family)
        elif match := re.fullmatch(rf"# TYPE ({_NAME}) (counter|gauge|histogram)", line):
            assert match[1] == family, "HELP, TYPE and samples stay together"
            kinds[family] = match[2]
        else:
            match = re.fullmatch(rf"({_NAME})(?:\{{(.*)\}})? (\S+)", line)
            assert match is not None, line
            suffixes = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert match[1] in [family + suffix for suffix in suffixes], line
            labels = tuple(_LABEL.findall(match[2] or ""))
            assert ",".join(f'{a}="{b}"' for a, b in labels) == (match[2] or ""), line
            key = (match[1], labels)
            assert key not in samples, line
            samples[key] = float(match[3])
    assert helped == set(kinds)
    return samples, kinds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("metrics") / "tiny.gguf", "qwen3moe", "Q4_0")


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(labels.items())]


def test_an_engines_figures(model: Path, tmp_path: Path) -> None:
    root = plant(tmp_path, ORIN_NX)
    with Sampler(model, root=root, jtop=False) as sampler:
        metrics = Metrics(sampler)
        parse(text(metrics.families()))  # before there is an engine
        with Engine(model, cache="30%", telemetry=[metrics], publish=False) as engine:
            for _ in range(2):
                "".join(engine.generate("hello", temperature=0, max_tokens=6))
            answer = engine.answer
            samples, kinds = parse(text(metrics.families()))
            assert engine.budget is not None
            budget_bytes = engine.budget.n_bytes
    assert value(samples, "remoe_edge_answers_total") == 2
    assert value(samples, "remoe_edge_generated_tokens_total") == 12
    assert value(samples, "remoe_edge_prompt_tokens_total") == 2 * answer.n_prompt
    assert value(samples, "remoe_edge_expert_misses_total") >= answer.misses
    assert value(samples, "remoe_edge_cache_budget_bytes") == budget_bytes
    assert value(samples, "remoe_edge_generating") == 0
    assert value(samples, "remoe_edge_time_per_output_token_seconds_count") == 10
    assert value(samples, "remoe_edge_time_per_output_token_seconds_bucket", le="+Inf") == 10
    assert value(samples, "remoe_edge_time_to_first_token_seconds_count") == 2
    assert value(samples, "remoe_edge_power_watts") == pytest.approx(10.144)
    assert value(samples, "remoe_edge_rail_power_watts", rail="VDD_SOC") == pytest.approx(2.536)
    assert value(samples, "remoe_edge_temperature_celsius", zone="tj") == 50.187
    assert value(samples, "remoe_edge_clock_hertz", part="cpu4") == 729_600_000
    assert value(samples, "remoe_edge_load_ratio", part="gpu") == 0.125
    for name, kind in kinds.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "histogram" or name.endswith("_seconds")
    measured = [name.removesuffix("_total").rpartition("_")[2] for name in kinds]
    assert {unit for unit in measured if unit in _UNITS} >= {"seconds", "bytes", "watts", "ratio"}


def test_labels_and_help_are_escaped() -> None:
    family = Family("a_total", "counter", "one\\two\nthree").add(1, path='C:\\x "y"\nz')
    assert text([family]) == (
        "# HELP a_total one\\\\two\\nthree\n# TYPE a_total counter\n"
        'a_total{path="C:\\\\x \\"y\\"\\nz"} 1.0\n'
    )
    parse(text([family]))


def test_numbers_are_written_whole() -> None:
    family = Family("a", "gauge", "x")
    for number in (0.1 + 0.2, math.nan, math.inf, -math.inf, 3.0, 1e300, 2**40):
        family.add(number, n=str(number))
    written = [line.rpartition(" ")[2] for line in text([family]).splitlines()[2:]]
    wanted = [0.1 + 0.2, math.nan, math.inf, -math.inf, 3, 1e300, 2**40]
    assert repr(list(map(float, written))) == repr(list(map(float, wanted)))
    assert text([Family("b", "gauge", "x").add(None)]) == ""


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram((1, 2, 5))
    for number in (0.5, 1, 1.5, 9):
        histogram.observe(number)
    samples, _ = parse(text([histogram.add_to(Family("t_seconds", "histogram", "x"))]))
    assert [value(samples, "t_seconds_bucket", le=each) for each in ("1.0", "2.0", "5.0", "+Inf")] == [
        2, 3, 3, 4,
    ]  # fmt: skip
    assert (value(samples, "t_seconds_sum"), value(samples, "t_seconds_count")) == (12, 4)


def get(server: MetricsServer, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    host, port = re.fullmatch(r"http://(.+):(\d+)/metrics", server.url).groups()  # type: ignore[union-attr]
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=600)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers["Content-Type"], body


def test_the_server(tmp_path: Path) -> None:
    with Sampler(root=plant(tmp_path, ORIN_NX), jtop=False) as sampler:
        server = MetricsServer(Metrics(sampler).families, "0")
        assert server.url.startswith("http://127.0.0.1:")
        status, kind, body = get(server)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        parse(body)
        assert get(server, "/metrics?x=1")[0] == 200
        assert get(server, method="HEAD") == (200, kind, "")
        assert get(server, "/")[0] == 404
        assert get(server, "/etc/passwd")[0] == 404
        assert get(server, method="POST")[0] == 501
        server.close()
        with pytest.raises(OSError, match="refused"):
            get(server)


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    server = MetricsServer(lambda: [Family("x", "gauge", "x").add(1)], "0")
    yield server
    server.close()


def port_of(server: MetricsServer) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


def asked(server: MetricsServer, *headers: str, version: str = "1.1") -> int:
    """Ask with these headers and no others; return the status."""
    lines = [f"GET /metrics HTTP/{version}", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=600) as client:
        client.sendall("\r\n".join(lines).encode())
        return int(client.makefile().readline().split()[1])


def test_on_loopback_only_its_own_names_are_answered(server: MetricsServer) -> None:
    port = port_of(server)
    for host in (f"127.0.0.1:{port}", "localhost", "LocalHost.:1", f"[::1]:{port}", "127.9.9.9"):
        assert asked(server, f"Host: {host}") == 200, host
    for host in ("evil.example", f"evil.example:{port}", "10.0.0.1", "localhost.evil.example", "",
                 "127.0.0.1@evil.example", "127.0.0.1.nip.example", "0.0.0.0", "[::2]"):  # fmt: skip
        assert asked(server, f"Host: {host}") == 403, host
    assert asked(server, "Host: localhost", "Host: evil.example") == 403
    assert asked(server, version="1.0") == 200  # a client of old, which no browser is


def test_a_server_for_the_network_answers_by_any_name() -> None:
    server = MetricsServer(list, "0.0.0.0:0")
    assert asked(server, "Host: board.example:9100") == 200
    server.close()


def test_hosts_that_are_this_machine() -> None:
    assert is_loopback("::1")
    assert is_loopback("[::1]")
    assert not is_loopback("::2")
    assert not is_loopback("localhost:x:y")


def test_more_clients_than_places_are_closed_at_once(server: MetricsServer) -> None:
    address = ("127.0.0.1", port_of(server))
    idle = []
    for _ in range(metrics_server._MOST_CLIENTS):
        client = socket.create_connection(address, timeout=600)
        client.sendall(b"GET /metrics HTTP/1.0\r\n")  # and no more
        idle.append(client)
    with socket.create_connection(address, timeout=600) as late:
        assert late.recv(100) == b""
    for client in idle:
        client.sendall(b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 200")
        client.close()
    assert get(server)[0] == 200


@pytest.mark.parametrize("limit", ["_CLIENT_S", "_IDLE_CLIENT_S"])
def test_a_client_that_sends_no_end_is_cut_off(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "_CLIENT_S":
        monkeypatch.setattr(metrics_server, limit, 0.2)
    else:
        monkeypatch.setattr(metrics_server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=600) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\nX: ")
        assert client.recv(100) == b""


def test_a_port_in_use_is_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = run(capsys, "chat", "-m", model, "-p", "x", "--metrics", str(port)).error()
    assert f"no metrics at 127.0.0.1, port {port}: Address already in use" in error
    assert "choose another --metrics" in error


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("0.0.0.0:9100", ("0.0.0.0", 9100)),
        ("[::1]:80", ("::1", 80)),
        (":0", ("127.0.0.1", 0)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "65536", "host:", "٣"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="no \\[HOST:\\]PORT"):
        parse_address(text)


def test_a_host_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(InputError, match="no metrics at 203.0.113.7, port 0: "):
        MetricsServer(Metrics(Sampler()).families, "203.0.113.7:0")


def test_chat_serves_while_it_runs(model: Path, tmp_path: Path) -> None:
    with start("chat", "-m", model, "--metrics", "0", "-n", "4", state=tmp_path) as chat:
        chat.wait_for("/metrics\n")
        url = re.search(rb"http://127\.0\.0\.1:(\d+)/metrics", bytes(chat.err))
        assert url is not None
        chat.type("hello\n")
        chat.wait_for(" tokens, ")
        connection = http.client.HTTPConnection("127.0.0.1", int(url[1]), timeout=600)
        connection.request("GET", "/metrics")
        samples, _ = parse(connection.getresponse().read().decode())
        assert value(samples, "remoe_edge_answers_total") == 1
        connection.close()
        outcome = chat.end()
    assert outcome.code == 0, outcome
    assert "Traceback" not in outcome.err


def test_without_the_library_only_metrics_is_refused(tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "m.gguf", "qwen3moe", "Q8_0")
    without = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from remoe_edge.cli import main\nmain()\n"
    )
    asked = {"chat": ["-m", str(path), "-p", "x", "-n", "1"], "top": ["--once"]}
    for command, arguments in asked.items():
        line = [sys.executable, "-c", without, command, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            [*line, "--metrics", "0"], capture_output=True, text=True, timeout=600
        )
        assert done.returncode != 0
        assert "--metrics needs prometheus_client: pip install 'remoe-edge[serve]'" in done.stderr
        assert "Traceback" not in done.stderr
