"""Vectors of texts: those of stock llama.cpp, by the engine, in a batch, and over HTTP."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import PoolingType

import stock
import tiny_encoder
import tiny_moe
from remoe_edge import Engine
from remoe_edge.errors import InputError, UnsupportedError
from serving import HI, SECONDS, Live, chatting, live

from remoe_edge.serve.protocols.openai_embeddings import unit  # isort: skip

KINDS = ("encoder", "MEAN", "LAST", "CLS")
TEXT = "The lazy dog sleeps in the sun. " * 3
EMBEDDINGS = "/v1/embeddings"

# Stock llama.cpp in a process where nothing of ours is registered.
STOCK = """
import ctypes, json, sys
import llama_cpp.llama_cpp as low
path, tokens = sys.argv[1], json.loads(sys.argv[2])
low.llama_backend_init()
model_params = low.llama_model_default_params()
model_params.use_extra_bufts = False
model = low.llama_model_load_from_file(path.encode(), model_params)
params = low.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = 512
params.n_threads = params.n_threads_batch = 1
params.embeddings = True
context = low.llama_init_from_model(model, params)
batch = low.llama_batch_init(len(tokens), 0, 1)
batch.n_tokens = len(tokens)
for i, token in enumerate(tokens):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
    batch.seq_id[i][0] = 0
assert low.llama_decode(context, batch) == 0
row = low.llama_get_embeddings_seq(context, 0)
print("\\n" + json.dumps([row[i].hex() for i in range(low.llama_model_n_embd(model))]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("embedding")
    made = {"encoder": tiny_encoder.encoder(folder / "encoder.gguf")}
    for kind in KINDS[1:]:
        made[kind] = tiny_encoder.decoder(folder, PoolingType[kind])
    return made


def stock_vector(model: Path, tokens: list[int]) -> np.ndarray:
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(model), json.dumps(tokens)], check=True, text=True,
        capture_output=True, timeout=SECONDS, env={**os.environ, **stock.ENVIRONMENT},
    )  # fmt: skip
    values = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    return np.array([float.fromhex(each) for each in values], np.float32)


def opened(model: Path, **settings: Any) -> Engine:
    return Engine(model, **{"cache": "50%", "n_ctx": 512, "threads": 1, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_stock(models: dict[str, Path], kind: str) -> None:
    with opened(models[kind]) as engine:
        assert engine.streamed
        tokens = engine.tokenize(TEXT)
        made = engine.embed(TEXT)
        assert np.array_equal(engine.embed(tokens), made)
        before = engine.counts()["misses"]
        other = engine.embed("Something else.")
        assert engine.counts()["misses"] > before
        assert not np.array_equal(other, made)
    assert np.array_equal(made, stock_vector(models[kind], tokens))


def test_a_batch_makes_the_same_beside_answers(models: dict[str, Path]) -> None:
    with opened(models["LAST"]) as engine:
        alone = engine.embed(TEXT)
        answer = engine.generate("abc", temperature=0, max_tokens=6, logprobs=0)
        said = answer.read(), [each.logprob for each in answer.logprobs or ()]
    with opened(models["LAST"], parallel=2) as engine:
        batch = engine.batch()

        class Heard:
            def __init__(self) -> None:
                self.text, self.over = "", False

            def piece(self, text: str) -> None:
                self.text += text

            def ended(self) -> None:
                self.over = True

            def failed(self, error: Exception) -> None:
                raise error

        heard = Heard()
        begun = batch.join("abc", heard, temperature=0, max_tokens=6, logprobs=0)
        for _ in range(3):
            batch.step()
            assert np.array_equal(batch.embed(engine.tokenize(TEXT)), alone)
            assert batch.n_free == 1
        while not heard.over:
            batch.step()
        batch.close()
        assert (heard.text, [each.logprob for each in begun.logprobs or ()]) == said


def test_who_cannot_says_so(models: dict[str, Path], tmp_path: Path) -> None:
    with opened(tmp_path_model(tmp_path)) as engine:
        with pytest.raises(UnsupportedError, match="makes no embeddings"):
            engine.embed("abc")
        with pytest.raises(UnsupportedError, match="makes no embeddings"):
            _ = engine.longest_embedded
    with opened(models["encoder"], n_ubatch=32) as engine:
        assert engine.longest_embedded == 32
        with pytest.raises(UnsupportedError, match="writes no text"):
            engine.generate("abc")
        with pytest.raises(InputError, match="up to 32"):
            engine.embed([1] * 33)
        with pytest.raises(InputError, match="is empty"):
            engine.embed("")
        assert engine.embed([1] * 32).shape == (128,)
        engine.reset()


def tmp_path_model(folder: Path) -> Path:
    return tiny_moe.make(folder / "plain.gguf", "qwen3moe", "Q8_0")


@pytest.fixture(scope="module", params=[("encoder", 1), ("LAST", 2)], ids=["encoder", "places"])
def server(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[Live]:
    kind, parallel = request.param
    with live(models[kind], parallel=parallel) as started:
        yield started


def test_over_http(server: Live) -> None:
    texts = ["one", "two words", TEXT]
    made = server.post(EMBEDDINGS, model="any", input=texts)
    assert (made["object"], made["model"]) == ("list", "tiny")
    assert [each["index"] for each in made["data"]] == [0, 1, 2]
    vectors = [np.array(each["embedding"], np.float32) for each in made["data"]]
    tokens = [
        server.post("/tokenize", content=each, add_special=True, parse_special=False)["tokens"]
        for each in texts
    ]
    n_tokens = sum(map(len, tokens))
    assert made["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    for each in vectors:
        assert np.linalg.norm(each) == pytest.approx(1, abs=1e-6)
    again = server.post(EMBEDDINGS, input=tokens, encoding_format="base64")["data"]
    for each, vector in zip(again, vectors, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), vector)
    (first,) = server.post(EMBEDDINGS, input="one", dimensions=8)["data"]
    assert np.allclose(first["embedding"], unit(vectors[0][:8]), atol=1e-6)
    text = server.ask("/metrics")[2].decode()
    (count,) = [
        line.rpartition(" ")[2] for line in text.splitlines() if 'outcome="embedded"' in line
    ]
    assert float(count) >= 7


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "x " * 2000}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 100000}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "stream": True}, "stream"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server: Live, body: Any, param: str) -> None:
    status, error = server.refused(EMBEDDINGS, **body)
    assert (status, error["param"]) == (400, param)


def test_an_encoder_writes_no_text(models: dict[str, Path], tmp_path: Path) -> None:
    with live(models["encoder"]) as server:
        for path, body in (
            ("/v1/completions", {"prompt": "a"}),
            ("/v1/chat/completions", {"messages": HI}),
        ):
            status, error = server.refused(path, **body)
            assert (status, error["code"]) == (400, "unsupported")
    with live(chatting(tmp_path)) as server:
        status, error = server.refused(EMBEDDINGS, input="a")
        assert (status, error["code"]) == (400, "unsupported")


def test_the_official_client(server: Live) -> None:
    openai = pytest.importorskip(
        "openai", reason="openai is not installed: pip install 'remoe-edge[test-clients]'"
    )
    with openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as client:
        usual = client.embeddings.create(model="tiny", input=["one", "two"])  # base64 underneath
        plain = client.embeddings.create(
            model="tiny", input=["one", "two"], encoding_format="float"
        )
        short = client.embeddings.create(model="tiny", input="one", dimensions=4)
    for one, two in zip(usual.data, plain.data, strict=True):
        assert np.allclose(one.embedding, two.embedding, atol=1e-6)
    assert len(short.data[0].embedding) == 4
    assert usual.usage.prompt_tokens == plain.usage.prompt_tokens > 0


def test_an_encoder_beside_what_other_models_take(models: dict[str, Path]) -> None:
    """It has no context, which evaluating a token and proving peers once took for granted."""
    encoder = models["encoder"]
    with opened(encoder) as engine:
        wanted = engine.embed("hello there")
        with pytest.raises(UnsupportedError, match="writes no text"):
            engine.evaluate([5, 6])
    with opened(encoder, cache="100%", peers="127.0.0.1:9") as engine:
        assert np.array_equal(engine.embed("hello there"), wanted)
    with pytest.raises(UnsupportedError, match="writes no text"):
        opened(encoder, cache="plan:1s")
