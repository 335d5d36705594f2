"""What programs do with a plugged model besides asking it for tokens: the same happens as without us."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import plugged
import tiny_moe
from remoe_edge.convert.merge import merge
from remoe_edge.files.models import shipped_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_moe.make(tmp_path_factory.mktemp("uses") / "tiny.gguf", "qwen3moe", "Q8_0")


def check(text: str, *arguments: object, cache: str = "0.001%", **settings: str) -> None:
    """Run a script without the plug-in and with it: both must print the same, and something."""
    plain = plugged.script(text, *arguments, plugged=False)
    assert plain.stdout.strip()
    done = plugged.script(text, *arguments, cache=cache, **settings)
    assert done.stdout == plain.stdout, plugged.said(done)
    assert "a cache of" in plugged.said(done)


@pytest.mark.parametrize("n_used", [1, 9])
def test_another_number_of_experts_for_a_token(model: Path, n_used: int) -> None:
    """--override-kv: a token may use more experts than the floor that the file speaks of."""
    text = """
        key = lib.llama_model_kv_override * 2
        chosen = key()
        chosen[0].tag, chosen[0].key = 0, b"qwen3moe.expert_used_count"
        chosen[0].value.val_i64 = int(sys.argv[2])
        model = load(sys.argv[1], kv_overrides=chosen)
        ctx = context(model)
        for tokens in ([5, 6, 7, 8, 9], [10], [11]):
            assert decode(ctx, tokens) == 0
            print(bits(ctx, model))
    """
    check(text, model, n_used)


def test_a_program_that_looks_at_every_value(model: Path) -> None:
    """What llama-imatrix and llama-eval-callback do: the graph is computed node by node."""
    text = """
        import ctypes
        import hashlib
        import os
        base = ctypes.CDLL(os.path.dirname(lib.__file__) + "/lib/libggml-base.so")
        base.ggml_get_name.restype = ctypes.c_char_p
        base.ggml_get_name.argtypes = [ctypes.c_void_p]
        base.ggml_nbytes.restype = ctypes.c_size_t
        base.ggml_nbytes.argtypes = [ctypes.c_void_p]
        base.ggml_backend_tensor_get.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
        ]
        only = sys.argv[2].encode()
        def look(tensor, ask, _):
            name = base.ggml_get_name(tensor)
            if ask:
                return only in name
            n = base.ggml_nbytes(tensor)
            data = ctypes.create_string_buffer(n)
            base.ggml_backend_tensor_get(tensor, data, 0, n)
            print(name.decode(), hashlib.sha256(data.raw).hexdigest())
            return True
        kept = lib.ggml_backend_sched_eval_callback(look)
        model = load(sys.argv[1])
        ctx = context(model, cb_eval=kept)
        for tokens in ([5, 6, 7, 8, 9], [10]):
            assert decode(ctx, tokens) == 0
            print(bits(ctx, model))
    """
    check(text, model, "ffn_moe_down")
    check(text, model, "ffn_moe")


def test_tuned_routers_are_those_of_a_merged_model(tmp_path: Path) -> None:
    overlay = shipped_model().with_suffix(".routers.gguf")
    if not overlay.is_file():
        pytest.skip(f"there is no {overlay}")
    merge(shipped_model(), overlay, tmp_path / "merged.gguf")
    text = """
        model = load(sys.argv[1]); ctx = context(model)
        assert decode(ctx, [5, 6, 7, 8, 9, 10]) == 0
        print(bits(ctx, model))
    """
    own = plugged.script(text, shipped_model(), plugged=False).stdout
    tuned = plugged.script(text, tmp_path / "merged.gguf", plugged=False).stdout
    assert own != tuned
    for routers in ("default", str(overlay)):
        done = plugged.script(text, shipped_model(), cache="30%", routers=routers)
        assert done.stdout == tuned
        assert str(overlay) in plugged.said(done)
    assert plugged.script(text, shipped_model(), cache="30%", routers="off").stdout == own


def test_loads_at_the_same_time(model: Path) -> None:
    """Several threads load one file: each model is right, or was refused with a line."""
    text = """
        alone = load(sys.argv[1]); ctx = context(alone)
        assert decode(ctx, [5, 6, 7]) == 0
        right = bits(ctx, alone)
        wrong = []
        def work():
            model = load(sys.argv[1])
            ctx = model and context(model)
            if ctx and decode(ctx, [5, 6, 7]) == 0 and bits(ctx, model) != right:
                wrong.append(model)
        at_once(work, *[()] * 6)
        print(right, wrong)
    """
    check(text, model, cache="30%")


def test_a_model_that_is_written_to_a_file(model: Path, tmp_path: Path) -> None:
    text = """
        model = load(sys.argv[1])
        lib.llama_model_save_to_file(model, sys.argv[2].encode())
        import hashlib
        print(hashlib.sha256(open(sys.argv[2], "rb").read()).hexdigest())
    """
    check(text, model, tmp_path / "saved.gguf")


@pytest.mark.parametrize("name", ["two words.gguf", "line\nfeed.gguf", "gruß.gguf", "(deleted)"])
def test_any_name_of_a_file(model: Path, tmp_path: Path, name: str) -> None:
    os.link(model, tmp_path / name)
    (tmp_path / "link.gguf").symlink_to(name)
    text = """
        import os
        os.chdir(sys.argv[1])
        for name in sys.argv[2:]:
            model = load(name); ctx = context(model)
            assert decode(ctx, [5, 6, 7]) == 0
            print(bits(ctx, model))
    """
    check(text, tmp_path, name, "link.gguf")


@pytest.mark.parametrize("params", [{"use_mlock": True}, {"check_tensors": True}])
def test_other_ways_to_load(model: Path, params: dict[str, bool]) -> None:
    text = f"""
        model = load(sys.argv[1], **{params!r})
        print(bool(load(sys.argv[1], vocab_only=True)))
        ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, model))
    """
    check(text, model)


@pytest.mark.parametrize("repack", ["on", "off"])
def test_either_arrangement_of_experts(model: Path, repack: str) -> None:
    text = """
        model = load(sys.argv[1], use_extra_bufts=sys.argv[2] == "on"); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, model))
    """
    check(text, model, repack, repack=repack)


def test_a_status_that_cannot_be_shown_is_said(model: Path) -> None:
    text = """
        model = load(sys.argv[1]); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, model))
    """
    check(text, model, status="/proc/nowhere")
