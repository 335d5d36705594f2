"""Whatever comes over HTTP, the server answers in its protocols' form, and goes on."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import serve_bad_input
from remoe_edge import Engine, InputError, ModelError
from serving import HI, SECONDS, Live, chatting, live, wait_until

from remoe_edge.serve.listen import Listener  # isort: skip
from remoe_edge.serve.settings import ServeSettings  # isort: skip

CHAT = "/v1/chat/completions"
ANSWERING = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages")
POSTED = (*ANSWERING, "/tokenize", "/v1/embeddings")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("http"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Live]:
    with live(model, most_bytes=100_000) as started:
        yield started


@pytest.fixture
def hasty(model: Path) -> Iterator[Live]:
    """A server that waits for nobody; on a busy machine even a client that hurries may be too late."""
    with live(model, most_bytes=100_000, header_s=1.0, body_s=1.0) as started:
        yield started


def error_of(path: str, data: bytes) -> dict[str, Any]:
    """Read an error, and insist on its form."""
    found = json.loads(data)
    error: dict[str, Any] = found["error"]
    if path == "/v1/messages":
        assert (found["type"], set(error)) == ("error", {"type", "message"})
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert error["message"]
    return error


def still_answers(server: Live) -> None:
    made = server.post(CHAT, messages=HI, temperature=0, max_tokens=2)
    assert made["usage"]["completion_tokens"] == 2


def answers_again(server: Live) -> None:
    """Insist that one of many tries comes through to a server that waits for nobody."""

    def answered() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return server.ask(CHAT, {"messages": HI, "max_tokens": 2})[0] == 200
        return False

    wait_until(answered)


@pytest.mark.parametrize("path", POSTED)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b"\xff\xfe", b'{"messages": "\xc3("}',
        b'{"messages": NaN}', b'{"a": 1e999999}', b'{"prompt": "\\ud800"}', b"[" * 50_000,
        b'{"messages":' * 8_000, b'{"messages": 1' + b"0" * 10_000 + b"}", b"\x00" * 100,
        b'{"messages": [{"role": "user", "content": {"a": 1}}]}', b"{'messages': []}",
        b'{"messages": [null]}', b'{"messages": [[]]}', b'{"input": [3], "prompt": {"a": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_an_error(server: Live, path: str, body: bytes) -> None:
    status, _, data = server.ask(path, body)
    assert status == 400, data
    error_of(path, data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from(
    ["messages", "prompt", "input", "model", "max_tokens", "temperature", "top_p", "stop", "stream",
     "n", "tools", "tool_choice", "response_format", "logit_bias", "logprobs", "seed", "system",
     "role", "content", "echo", "stream_options", "text", "reasoning", "metadata"]
) | st.text(max_size=8)  # fmt: skip


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(POSTED),
    body=st.dictionaries(NAMES, VALUES, max_size=6) | VALUES | st.binary(max_size=200),
)
def test_random_bodies_are_errors_or_answered(server: Live, path: str, body: Any) -> None:
    if isinstance(body, dict):  # so that what is right by chance is short
        body = {**body, "max_tokens": "no number", "max_output_tokens": "no number"}
    sent = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    status, _, data = server.ask(path, sent)
    if path in ("/tokenize", "/v1/embeddings") and status == 200:
        return
    assert 400 <= status < 500, data
    error_of(path, data)


def test_right_requests_with_something_wrong_in_them(server: Live) -> None:
    """A short form of tools/serve_bad_input.py, which sends 10,000 to a server of its own process."""
    counts, wrong = serve_bad_input.run(
        lambda path, body: server.ask(path, body)[::2], seed=1, n=300
    )
    assert wrong == []
    assert counts[200] > 10  # some were right all the same
    assert counts[400] > 100


def test_after_all_that_it_answers(server: Live) -> None:
    still_answers(server)
    # The client has the last byte a moment before the engine's thread has put the answer away.
    wait_until(lambda: server.conversations.load.running == 0)


def test_paths_and_methods_that_are_not_there(server: Live) -> None:
    for path, method, wanted in (
        ("/nothing", "GET", 404), ("/v1/messages/x", "POST", 404), (CHAT, "GET", 405),
        ("/health", "POST", 405), ("/page/../app.py", "GET", 404), ("/page/app.py", "GET", 404),
        ("/page/%2e%2e%2fapp.py", "GET", 404), (CHAT, "PUT", 405),
    ):  # fmt: skip
        status, _, data = server.ask(path, method=method)
        assert status == wanted, path
        assert json.loads(data)["error"]["message"]


def test_the_readmes_curl_works_as_it_is_written(server: Live) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curl (?:.*\\\n)*.*$", readme, re.M)
    command = command.replace("http://127.0.0.1:8080/", server.url)
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=SECONDS, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_a_form_of_another_site_is_refused(server: Live) -> None:
    body = json.dumps({"messages": HI}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, _, data = server.ask(CHAT, body, headers={"Content-Type": kind})
        assert status == 415
        error_of(CHAT, data)


def test_a_large_body_is_refused_before_it_is_read(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, headers, data = server.ask(CHAT, b"x" * 100_001)
    assert status == 413
    assert headers["connection"] == "close"
    error_of(CHAT, data)
    body = (
        b'{"messages": "' + b"x" * 30_000_000 + b'"}'
    )  # all of it is sent before the answer is read
    with plain(server) as client:
        client.sendall(head(CHAT, f"Content-Length: {len(body)}") + body)
        assert b" 413 " in receive(client)
    with plain(server) as client, monkeypatch.context() as patch:
        patch.setattr("remoe_edge.serve.http._SILENT_S", 0.1)  # it is waited for in silence
        client.sendall(head(CHAT, "Content-Length: 99999999999"))  # the body never comes
        assert b" 413 " in receive(client)
    with plain(server) as client:  # no length: it is counted
        client.sendall(head(CHAT, "Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(20):
                client.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        assert b" 413 " in receive(client)
    still_answers(server)


def head(path: str, *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def plain(server: Live) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        yield client


def receive(client: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found


def test_slow_clients_are_let_go(hasty: Live) -> None:
    with plain(hasty) as silent, plain(hasty) as slow_head, plain(hasty) as slow_body:
        slow_head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        slow_body.sendall(head(CHAT, "Content-Length: 100") + b'{"mess')
        assert receive(silent) == b""
        assert b" 200 " not in receive(slow_head)
        answer = receive(slow_body)
        assert b" 408 " in answer
        error_of(CHAT, answer.rpartition(b"\r\n\r\n")[2])
    answers_again(hasty)


@pytest.mark.parametrize("begin", ["GET / HTTP/1.1\r\nX: ", "body"])
def test_a_client_that_drips_is_let_go(hasty: Live, begin: str) -> None:
    """A byte now and then holds no connection: the time is that of all of it."""
    with plain(hasty) as client:
        client.sendall(head(CHAT, "Content-Length: 100000") if begin == "body" else begin.encode())
        client.settimeout(0.02)
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(50 * SECONDS):
                with contextlib.suppress(TimeoutError):
                    client.sendall(b"x")
                    answer = client.recv(65536)
                    break
            else:
                pytest.fail("it was never let go")
        assert b" 200 " not in answer
        assert answer == b"" or begin == "body"
    answers_again(hasty)


def test_what_is_no_http_is_let_go(hasty: Live) -> None:
    for data in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n",
                 b"\r\n" * 1000, b"A" * 100_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 9000):  # fmt: skip
        with plain(hasty) as client, contextlib.suppress(OSError):
            client.sendall(data)
            answer = receive(client)
            assert b" 200 " not in answer
            if answer:
                error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
                assert error["type"] == "invalid_request_error"
    answers_again(hasty)


def test_no_more_are_connected_than_may_be(model: Path) -> None:
    with live(model, most_clients=3) as server, contextlib.ExitStack() as others:
        idle = [others.enter_context(plain(server)) for _ in range(3)]
        for each in idle:  # an answer says that the server knows of it
            each.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert each.recv(20).startswith(b"HTTP/1.1 200")
        status, headers, data = server.ask("/health")
        assert (status, headers["retry-after"]) == (503, "1")
        assert "too many" in json.loads(data)["error"]["message"]
        idle[0].close()
        wait_until(lambda: server.ask("/health")[0] == 200)


def test_a_client_that_has_closed_its_side_frees_the_engine(server: Live) -> None:
    body = json.dumps({"messages": HI, "temperature": 0}).encode()
    with plain(server) as client:
        client.sendall(head(CHAT, f"Content-Length: {len(body)}") + body)
        client.shutdown(socket.SHUT_WR)
        receive(client)
    wait_until(lambda: server.conversations.load.running == 0)
    still_answers(server)


# --- who may ask ---


def test_names_of_other_machines_are_refused_on_loopback(server: Live) -> None:
    for host, wanted in (
        ("evil.example", 403),
        ("127.0.0.1:80", 200),
        ("localhost", 200),
        ("[::1]", 200),
    ):
        assert server.ask("/health", headers={"Host": host})[0] == wanted, host
    for origin, wanted in (("http://evil.example", 403), (server.url.rstrip("/"), 200)):
        assert server.ask("/health", headers={"Origin": origin})[0] == wanted, origin
    headers = server.ask("/health", headers={"Origin": "http://localhost"})[1]
    assert "access-control-allow-origin" not in headers


def test_a_key_is_asked_for(model: Path) -> None:
    with live(model, api_key="secret") as server:
        asked = {"messages": HI, "max_tokens": 1}
        for headers, wanted in (
            ({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "secret"}, 401),
            ({"Authorization": "Bearer secret"}, 200), ({"x-api-key": "secret"}, 200),
            ({"x-api-key": "s\u00e9cret"}, 401), ({"Authorization": "bearer secret"}, 200),
        ):  # fmt: skip
            status, _, data = server.ask(CHAT, asked, headers=headers)
            assert status == wanted, headers
            if wanted == 401:
                assert error_of(CHAT, data)["code"] == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/slots"):
            assert server.ask(path)[0] == 401
        for path in ("/", "/health", "/page/chat.js"):
            assert server.ask(path)[0] == 200
        status, _, data = server.ask("/v1/messages", {"messages": HI, "max_tokens": 1})
        assert (status, error_of("/v1/messages", data)["type"]) == (401, "authentication_error")


def test_pages_of_other_sites_only_where_asked_for(model: Path) -> None:
    site = "http://app.example"
    asks = {"Origin": site, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    with live(model, cors=(site,), api_key="secret") as server:
        status, headers, _ = server.ask(CHAT, method="OPTIONS", headers=asks)
        assert (status, headers["access-control-allow-origin"]) == (200, site)
        other = {**asks, "Origin": "http://evil.example"}
        status, headers, _ = server.ask(CHAT, method="OPTIONS", headers=other)
        assert (status, "access-control-allow-origin" in headers) == (400, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": ""},
        {"api_key": "k\u00e9y"},
        {"api_key": "one\ntwo"},
        {"api_key": " key"},
        {"cors": ("http://localhost:3000/",)},  # what no browser sends
        {"certificate": Path("x")},
        {"cors": ("app.example",)},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServeSettings(**wrong)


def test_a_port_that_is_taken(server: Live, tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(InputError, match="cannot listen"):
        Listener(app, ServeSettings(port=server.port))
    with pytest.raises(InputError, match="cannot listen"):
        Listener(app, ServeSettings(host="no.such.host.invalid"))
    nothing = tmp_path / "none.pem"
    with pytest.raises(InputError, match="cannot read the certificate"):
        Listener(app, ServeSettings(port=0, certificate=nothing, private_key=nothing))


def test_tls(model: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key),
             "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost"], check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    with live(model, certificate=certificate, private_key=key) as server:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=str(certificate))
        with (
            plain(server) as client,
            trust.wrap_socket(client, server_hostname="localhost") as safe,
        ):
            safe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert b'"ready"' in receive(safe)


# --- how it is doing ---


def test_health_tells_of_loading_and_failing(model: Path) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait()
        return Engine(model, cache="50%", n_ctx=128, threads=1)

    server = Live(load)
    try:
        status, _, data = server.ask("/health")
        assert (status, json.loads(data)["status"]) == (503, "loading")
        status, headers, data = server.ask(CHAT, {"messages": HI})
        assert (status, int(headers["retry-after"]) > 0) == (503, True)
        assert "loaded" in error_of(CHAT, data)["message"]
        may_load.set()
        server.ready()
        assert server.ask("/health")[0] == 200
        still_answers(server)
    finally:
        may_load.set()
        server.close()

    def fail() -> Engine:
        raise ModelError("the file is damaged")

    server = Live(fail)
    try:
        wait_until(lambda: server.conversations.state == "failed")
        status, _, data = server.ask("/health")
        found = json.loads(data)
        assert (status, found["status"], found["error"]) == (503, "failed", "the file is damaged")
        assert server.ask(CHAT, {"messages": HI})[0] == 503
    finally:
        server.close()


def test_a_comment_keeps_a_silent_stream_alive(model: Path) -> None:
    with live(model, keep_alive_s=0.02) as server:
        may_begin = threading.Event()
        engine = server.conversations.engine
        stock = engine.generate

        def generate(*args: Any, **settings: Any) -> Any:
            assert may_begin.wait(SECONDS)
            return stock(*args, **settings)

        engine.generate = generate  # type: ignore[method-assign]
        body = json.dumps({"messages": HI, "max_tokens": 2, "stream": True}).encode()
        with plain(server) as client:
            client.sendall(head(CHAT, f"Content-Length: {len(body)}", "Connection: close") + body)
            found = b""
            while found.count(b": keep-alive\n\n") < 3:
                piece = client.recv(65536)
                assert piece, found
                found += piece
            may_begin.set()
            assert b"data: [DONE]\n\n" in receive(client)


def test_nothing_that_was_asked_is_logged(
    server: Live, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    secret = "xylophone"
    messages = [{"role": "user", "content": secret}]
    server.post(CHAT, messages=messages, max_tokens=2)
    server.refused(CHAT, messages=messages, unknown=secret)
    server.refused("/v1/completions", prompt=secret, suffix=secret)
    time.sleep(0.05)
    out, err = capfd.readouterr()
    ours = [each.getMessage() for each in caplog.records if not each.name.startswith("asyncio")]
    assert secret not in out + err + "".join(ours)
