"""llama-server with the plug-in: the same answers, errors for requests alone, and what else it can do.

Slow: the plug-in is compiled for it first. llama_programs.py says where it comes from.
"""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import fuse_folder
import llama_programs
import plugged
import tiny_adapter
import tiny_moe
from llama_programs import WAIT_S, Programs, ask, get, post, probabilities, server
from remoe_edge.files.models import shipped_model
from remoe_edge.telemetry import exposition
from remoe_edge.telemetry.running_metrics import families
from remoe_edge.telemetry.status import running
from waiting import wait_until

pytestmark = pytest.mark.slow

QUESTION = "Once upon a time there was a little girl who"
PROMPTS = [[token, token + 1, token + 2] for token in range(10, 40)]


@pytest.fixture(scope="module", params=llama_programs.GIVEN, ids=lambda i: f"llama{i}")
def programs(request: pytest.FixtureRequest) -> Programs:
    return llama_programs.given(request.param)


@pytest.mark.parametrize("quant", plugged.FORMATS)
@pytest.mark.parametrize("arch", plugged.ARCHS)
def test_same_text_and_probabilities(
    programs: Programs, tmp_path: Path, arch: str, quant: str
) -> None:
    path = tiny_moe.make(tmp_path / "tiny.gguf", arch, quant)
    wanted = probabilities(programs, path, None)
    assert len(wanted) == plugged.N_GREEDY
    for budget, cache in plugged.BUDGETS.items():
        assert probabilities(programs, path, {"cache": cache}) == wanted, budget


def test_four_users_at_once(programs: Programs) -> None:
    prompts = [f"{QUESTION} lived in house number {n}" for n in range(4)]
    with server(programs, shipped_model(), {"cache": "30%"}, "-np", 4) as address:
        answers: dict[int, dict[str, Any]] = {}

        def one(number: int) -> None:
            answers[number] = ask(address, prompt=prompts[number])

        threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(answers[number]["content"] for number in range(4))


# --- storage that fails ---


def check_error(address: str) -> None:
    """Some of many requests must fail, with an error that says so."""
    answers = [ask(address, prompt=prompt) for prompt in PROMPTS]
    assert any("error" in answer for answer in answers)
    assert get(f"{address}/health")


def test_a_truncated_file(programs: Programs, tmp_path: Path) -> None:
    model = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    path = tmp_path / "last.gguf"
    begin = plugged.experts_last(model, path)
    whole = path.read_bytes()
    with server(programs, path, {"cache": "0.001%"}, "-np", 1) as address:
        right = ask(address, prompt=PROMPTS[0])
        os.truncate(path, begin + 100)
        check_error(address)
        with path.open("r+b") as file:
            file.seek(begin + 100)
            file.write(whole[begin + 100 :])
        assert ask(address, prompt=PROMPTS[0])["content"] == right["content"]


def test_a_replaced_file(programs: Programs, tmp_path: Path) -> None:
    path = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    with server(programs, path, {"cache": "0.001%"}, "-np", 1) as address:
        right = ask(address, prompt=PROMPTS[0])
        path.rename(tmp_path / "away.gguf")
        tiny_moe.make(path, "qwen3moe", "Q8_0", seed=7)
        check_error(address)
        (tmp_path / "away.gguf").replace(path)
        assert ask(address, prompt=PROMPTS[0])["content"] == right["content"]


@pytest.mark.parametrize("options", [(), ("refuse_direct",)])
def test_a_disk_with_errors(programs: Programs, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "disk").mkdir()
    model = tiny_moe.make(tmp_path / "tiny.gguf", "qwen3moe", "Q8_0")
    begin = plugged.experts_last(model, tmp_path / "source/last.gguf")
    # Opened before: FUSE forgets a file's pages, mapped ones too, whenever somebody opens it.
    with (
        fuse_folder.mounted(tmp_path / "source", tmp_path / "disk", *options) as disk,
        (disk / "last.gguf").open("rb") as file,
        server(programs, disk / "last.gguf", {"cache": "0.001%"}, "-np", 1) as address,
    ):
        right = ask(address, prompt=PROMPTS[0])
        (tmp_path / "source/.fail").touch()
        os.posix_fadvise(file.fileno(), begin, 0, os.POSIX_FADV_DONTNEED)
        check_error(address)
        (tmp_path / "source/.fail").unlink()
        assert ask(address, prompt=PROMPTS[0])["content"] == right["content"]


# --- what else a server can do ---


def both(programs: Programs, *more: object, model: Path | None = None) -> tuple[Any, Any]:
    """Ask the same of a server without the plug-in, and with it; return both contents."""
    contents = []
    for settings in (None, {"cache": "30%"}):
        with server(programs, model or shipped_model(), settings, "-np", 1, *more) as address:
            answer = ask(address, prompt=QUESTION, n_predict=48)
            contents.append((answer["content"], answer["tokens_predicted"]))
    return contents[0], contents[1]


def test_speculative_decoding(programs: Programs) -> None:
    without, plugged_in = both(programs, "-md", shipped_model())
    assert plugged_in == without


def test_an_adapter_on_dense_weights(programs: Programs, tmp_path: Path) -> None:
    lora = tiny_adapter.write(tmp_path / "dense.gguf", shipped_model(), "blk.1.attn_q.weight")
    without, plugged_in = both(programs, "--lora", lora)
    assert plugged_in == without


def test_an_adapter_on_experts_is_refused(programs: Programs, tmp_path: Path) -> None:
    lora = tiny_adapter.write(tmp_path / "ex.gguf", shipped_model(), "blk.1.ffn_up_exps.weight")
    done = subprocess.run(
        [programs.path("llama-server"), "-m", shipped_model(), "--lora", lora, "--port", "0"],
        env=programs.environment({"cache": "30%"}), capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode != 0
    assert "adapter cannot change experts" in plugged.said(done)


def test_embeddings(programs: Programs) -> None:
    found = []
    for settings in (None, {"cache": "30%"}):
        with server(
            programs, shipped_model(), settings, "--embedding", "--pooling", "mean"
        ) as address:
            found.append(post(f"{address}/embedding", {"content": QUESTION}))
    assert found[0] == found[1]
    assert found[0][0]["embedding"]


def test_a_slot_is_saved_and_restored(programs: Programs, tmp_path: Path) -> None:
    found = []
    for settings in (None, {"cache": "30%"}):
        with server(
            programs, shipped_model(), settings, "-np", 1, "--slots", "--slot-save-path", tmp_path
        ) as address:
            first = ask(address, prompt=QUESTION, cache_prompt=True)
            saved = post(f"{address}/slots/0?action=save", {"filename": "slot"})
            ask(address, prompt="The dragon", cache_prompt=True)
            restored = post(f"{address}/slots/0?action=restore", {"filename": "slot"})
            again = ask(address, prompt=QUESTION, cache_prompt=True)
            assert saved["n_saved"] == restored["n_restored"] > 0
            found.append((first["content"], again["content"]))
    assert found[0] == found[1]


def test_models_are_unloaded_and_loaded_again(programs: Programs, tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.mkdir(mode=0o700)
    models = {"one": "qwen3moe", "two": "olmoe"}
    for name, arch in models.items():
        tiny_moe.make(tmp_path / f"{name}.gguf", arch, "Q8_0")
    contents: list[dict[str, str]] = []
    for settings in (None, {"cache": "30%", "status": str(status)}):
        contents.append({})
        with server(
            programs, None, settings, "--models-dir", tmp_path, "--models-max", 1, "-np", 1
        ) as address:
            for turn in range(2):
                for name in models:
                    answer = ask(address, model=name, prompt=PROMPTS[0])
                    contents[-1][f"{name} {turn}"] = answer["content"]
                    if settings is not None:
                        # The other model's process may still be on its way out.
                        wait_until(lambda name=name: shown(status) == [f"{name}.gguf"], "unloading")
    assert contents[0] == contents[1]
    assert contents[1]["one 0"] == contents[1]["one 1"]


def shown(folder: Path) -> list[str]:
    """Name the models that `top` would show."""
    return sorted(Path(state["model"]).name for state in running([folder]))


def test_a_server_that_sleeps_gives_its_memory_back(programs: Programs, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = {"cache": "30%", "status": str(tmp_path)}
    with server(
        programs, shipped_model(), settings, "-np", 1, "--sleep-idle-seconds", 1
    ) as address:
        first = ask(address, prompt=QUESTION)
        wait_until(lambda: shown(tmp_path) == [], "sleep")
        assert ask(address, prompt=QUESTION)["content"] == first["content"]


def test_its_metrics_and_ours(programs: Programs, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = {"cache": "30%", "status": str(tmp_path)}
    with server(programs, shipped_model(), settings, "-np", 1, "--metrics") as address:
        assert ask(address, prompt=QUESTION)["content"]
        own = get(f"{address}/metrics")
        assert "llamacpp:" in own
        assert "remoe" not in own
        wait_until(lambda: running([tmp_path])[0]["totals"]["n_generated"] >= 15, "status")
        ours = exposition.text(families(running([tmp_path])))
        assert str(shipped_model()) in ours
