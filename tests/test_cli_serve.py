"""`remoe-edge serve` as a process: what it says, how it stops, and what it refuses to begin with."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from command_line import SECONDS, Running, run, start
from serving import chatting, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chatting(tmp_path_factory.mktemp("cli"))


def url_of(running: Running) -> str:
    running.wait_for("listening at ")
    wait_until(lambda: b"\n" in running.err.partition(b"listening at ")[2])
    found = re.search(rb"listening at (\S+)", running.err)
    assert found is not None
    return found[1].decode()


def ask(url: str, body: object = None, key: str = "") -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **({"x-api-key": key} if key else {})}
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_it_serves_until_it_is_stopped(model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with start(
        "serve", model, "--port", "0", "--cache", "50%", "--ctx", "256", "-t", "1", "--api-key-file",
        key, "--name", "mine", state=tmp_path,
    ) as running:  # fmt: skip
        url = url_of(running)
        running.wait_for("ready: ")
        asked = {"messages": [{"role": "user", "content": "confidential"}], "max_tokens": 4}
        assert ask(f"{url}v1/chat/completions", asked)[0] == 401
        status, data = ask(f"{url}v1/chat/completions", asked, "secret")
        assert (status, json.loads(data)["model"]) == (200, "mine")
        text = ask(f"{url}metrics", key="secret")[1].decode()
        assert "remoe_edge_answers_total 1" in text
        assert 'remoe_edge_requests_total{outcome="finished"} 1' in text
        running.process.send_signal(signal.SIGTERM)
        done = running.end()
    assert done.code == 0, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "confidential" not in done.err
    assert "secret" not in done.err


def test_ctrl_c_stops_it(model: Path, tmp_path: Path) -> None:
    with start("serve", model, "--port", "0", "--cache", "50%", state=tmp_path) as running:
        running.wait_for("ready: ")
        running.process.send_signal(signal.SIGINT)
        done = running.end()
    assert done.code == 0, done
    assert "Traceback" not in done.err


def test_it_warns_where_everybody_may_ask(model: Path, tmp_path: Path) -> None:
    with start(
        "serve", model, "--port", "0", "--host", "0.0.0.0", "--cache", "50%", state=tmp_path
    ) as running:
        running.wait_for("ready: ")
        running.process.send_signal(signal.SIGTERM)
        assert "whoever reaches this port" in running.end().err


def test_a_model_that_cannot_be_loaded_ends_it(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:5000])
    with start("serve", damaged, "--port", "0", state=tmp_path) as running:
        code = running.process.wait(SECONDS)
        wait_until(lambda: b"Error: " in running.err)
    assert code == 1
    assert "Traceback" not in running.err.decode()
    assert running.err.decode().splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--tls-certificate", "x.pem"], "private key"),
        (["--cors", "example"], "origin"),
        (["--api-key", ""], "API key"),
        (["--draft", "auto", "--keep-states", "states"], "one conversation at a time"),
        (["--draft", "on", "--parallel", "2"], "--parallel is for several"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, options: list[str], said: str
) -> None:
    assert said in run(capsys, "serve", model, *options).error()
    assert "no model at" in run(capsys, "serve", "/none.gguf").error()


def test_without_the_extra_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] in ("uvicorn", "starlette")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each.startswith("remoe_edge.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'remoe-edge[serve]'" in run(capsys, "serve", model).error()
