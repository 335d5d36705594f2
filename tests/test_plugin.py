"""The plug-in in a program of llama.cpp: the same bits, within its budget, and no model left behind."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

import fuse_folder
import plugged
import stock
import tiny_adapter
import tiny_moe
from plugged import ARCHS, BUDGETS, FORMATS, N_GREEDY, PROMPT
from remoe_edge.machine.disk import disk_of
from remoe_edge.machine.gpu import gpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_moe.make(folder / "tiny.gguf", "qwen3moe", "Q8_0")


@pytest.fixture(scope="module")
def processes() -> dict[str, stock.Process]:
    """Keep one program for each budget: it loads a model after another, and unloads it."""
    return {name: plugged.process(cache=cache) for name, cache in BUDGETS.items()}


def check(
    processes: dict[str, stock.Process], path: Path, *, n_greedy: int, repack: bool = True
) -> None:
    settings = stock.Settings(tuple(PROMPT), n_greedy, use_extra_bufts=repack)
    reference = stock.run(path, PROMPT, n_greedy, use_extra_bufts=repack)
    for budget, process in processes.items():
        result = process.ask(path, settings)
        assert result.tokens == reference.tokens, budget
        same = result.logits.view(np.uint32) == reference.logits.view(np.uint32)
        assert same.all(), f"{budget}: {(~same).sum()} logits differ"


@pytest.mark.parametrize("arch", ARCHS)
def test_same_bits(processes: dict[str, stock.Process], folder: Path, arch: str) -> None:
    quant = FORMATS[ARCHS.index(arch) % len(FORMATS)]
    path = tiny_moe.make(folder / f"{arch}.gguf", arch, quant)
    check(processes, path, n_greedy=16)
    path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(not gpus(), reason="llama.cpp has no GPU backend here that finds a device")
@pytest.mark.parametrize("layers", [1 << 20, 2])
def test_same_bits_with_the_dense_weights_on_a_gpu(folder: Path, layers: int) -> None:
    path = tiny_moe.make(folder / f"gpu-{layers}.gguf", "qwen3moe", "Q4_K")
    chosen = {"use_extra_bufts": False, "gpu_layers": layers, "experts_on_cpu": True}
    reference = stock.run(path, PROMPT, 16, **chosen)
    for cache in ("100%", "0.001%"):
        process = plugged.process(cache=cache)
        result = process.ask(path, stock.Settings(tuple(PROMPT), 16, **chosen))
        assert (result.logits.view(np.uint32) == reference.logits.view(np.uint32)).all()
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("quant", FORMATS)
@pytest.mark.parametrize("arch", ARCHS)
def test_same_bits_for_long(
    processes: dict[str, stock.Process], folder: Path, arch: str, quant: str
) -> None:
    path = tiny_moe.make(folder / f"{arch}-{quant}.gguf", arch, quant)
    check(processes, path, n_greedy=N_GREEDY)
    check(processes, path, n_greedy=8, repack=False)
    path.unlink()


def test_split_shards_and_a_plain_load(processes: dict[str, stock.Process], folder: Path) -> None:
    path = tiny_moe.make(folder / "split.gguf", "qwen3moe", "Q4_0", n_split=3)
    check(processes, path, n_greedy=4)
    check(processes, path, n_greedy=4, repack=False)


def test_shards_that_are_links_to_other_names(
    processes: dict[str, stock.Process], folder: Path
) -> None:
    # As caches of downloads keep them; the kernel tells of a mapping what the link leads to.
    first = tiny_moe.make(folder / "linked.gguf", "olmoe", "Q8_0", n_split=3)
    for number, shard in enumerate(sorted(folder.glob("linked-*.gguf"))):
        shard.rename(folder / f"blob-{7 - number}")
        shard.symlink_to(folder / f"blob-{7 - number}")
    check(processes, first, n_greedy=4)


def test_loading_reads_no_expert(folder: Path) -> None:
    path = tiny_moe.make(folder / "big.gguf", "qwen3moe", "Q8_0", n_expert=64, n_ff_exp=256)
    begin = plugged.experts_last(path, folder / "last.gguf")
    path = folder / "last.gguf"
    drop(path)
    done = plugged.script(
        """
        model = load(sys.argv[1])
        ctx = context(model)
        assert model and ctx
        """,
        path, cache="100%",
    )  # fmt: skip
    resident = resident_pages(path)
    in_experts = sum(resident[-(-begin // mmap.PAGESIZE) :]) * mmap.PAGESIZE
    # What the kernel reads around the last dense page, by the disk's read-ahead, and nothing else.
    disk = disk_of(path)
    ahead = 0 if disk is None else int(disk.read_ahead_file.read_text()) << 10
    most = max(1 << 20, ahead)
    if most > 8 << 20:
        pytest.skip("the disk's read-ahead is as large as the experts of a small model")
    assert path.stat().st_size - begin > 2 * most
    assert in_experts <= most, plugged.said(done)


def drop(path: Path) -> None:
    """Have the kernel forget a file's pages; skip where it does not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(resident_pages(path)):
        pytest.skip("this file system keeps pages that are not wanted")


def resident_pages(path: Path) -> list[bool]:
    """Tell of each page of a file whether it is in memory, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        at = libc.mmap(None, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        pages = (ctypes.c_ubyte * -(-n_bytes // mmap.PAGESIZE))()
        assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(n_bytes), pages) == 0
        libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(n_bytes))
    return [bool(page & 1) for page in pages]


def test_one_budget_for_all_models(folder: Path, model: Path) -> None:
    other = tiny_moe.make(folder / "other.gguf", "olmoe", "Q4_K")
    text = """
        first = load(sys.argv[1]); one = context(first)
        assert decode(one, [5, 6, 7]) == 0; alone = bits(one, first)
        second = load(sys.argv[2]); two = context(second)
        assert decode(two, [5, 6, 7]) == 0; print(bits(two, second))
        forget(one)
        assert decode(one, [5, 6, 7]) == 0; print(bits(one, first)); assert alone == bits(one, first)
        lib.llama_free(two); lib.llama_model_free(second)
        forget(one)
        assert decode(one, [5, 6, 7]) == 0; assert alone == bits(one, first)
        lib.llama_free(one); lib.llama_model_free(first)
        again = load(sys.argv[1]); one = context(again)
        assert decode(one, [5, 6, 7]) == 0; assert alone == bits(one, again)
    """
    plain = plugged.script(text, model, other, plugged=False)
    done = plugged.script(text, model, other, cache="1MiB")
    assert done.stdout == plain.stdout
    sizes = [float(each) for each in re.findall(r"experts, ([\d.]+) MiB", plugged.said(done))]
    assert len(sizes) == 3  # loaded, the other loaded, loaded again
    assert max(sizes) <= 1
    assert sizes[1] < sizes[0] == sizes[2]  # the second got a share, and gave it back


def test_two_contexts_in_two_threads(model: Path) -> None:
    text = """
        model = load(sys.argv[1])
        seen = {}
        def work(name, token):
            ctx = context(model)
            rows = []
            for step in range(24):
                assert decode(ctx, [token + step, 9, 31][: 1 + step % 3]) == 0
                rows.append(bits(ctx, model))
            seen[name] = rows
        at_once(work, *((n, 20 * n + 5) for n in range(3)))
        for name in range(3):
            print("".join(seen[name]))
    """
    plain = plugged.script(text, model, plugged=False)
    assert plugged.script(text, model, cache="30%", prefetch="on").stdout == plain.stdout


def test_models_come_and_go_in_several_threads(model: Path) -> None:
    """One that ends while others begin: nobody's cache is resized after it has gone."""
    text = """
        first = load(sys.argv[1]); ctx = context(first)
        assert decode(ctx, [5, 6, 7]) == 0
        right = bits(ctx, first)
        def come_and_go():
            for _ in range(8):
                model = load(sys.argv[1])
                if model:
                    lib.llama_model_free(model)
        at_once(come_and_go, *[()] * 4)
        forget(ctx)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, first) == right)
    """
    assert plugged.script(text, model, cache="1MiB").stdout.strip() == "True"


def test_a_forked_child_is_told_and_harms_nobody(model: Path, tmp_path: Path) -> None:
    """It has none of the parent's threads, but its ring: what it read came to the parent, which died."""
    text = """
        import os
        first = load(sys.argv[1]); ctx = context(first, n_threads=1, n_threads_batch=1)
        assert decode(ctx, [5, 6, 7]) == 0
        right, shown = bits(ctx, first), os.listdir(sys.argv[2])
        child = os.fork()
        if child == 0:
            forget(ctx)
            print(decode(ctx, [9, 10, 11]) != 0)
            lib.llama_free(ctx); lib.llama_model_free(first)
            print(os.listdir(sys.argv[2]) == shown)
            own = load(sys.argv[1]); ctx = context(own, n_threads=1, n_threads_batch=1)
            assert decode(ctx, [5, 6, 7]) == 0
            print(bits(ctx, own) == right)
            lib.llama_free(ctx); lib.llama_model_free(own)
            print(os.listdir(sys.argv[2]) == shown, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        forget(ctx)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, first) == right, len(shown), os.listdir(sys.argv[2]) == shown)
    """
    status = tmp_path / "status"
    status.mkdir(mode=0o700)
    done = plugged.script(text, model, status, cache="0.001%", status=str(status))
    assert done.stdout.split() == ["True"] * 5 + ["1", "True"]
    assert "load it after the fork" in plugged.said(done)


def test_state_is_saved_and_loaded(folder: Path, model: Path) -> None:
    text = """
        import ctypes
        model = load(sys.argv[1]); ctx = context(model)
        assert decode(ctx, [5, 6, 7, 8]) == 0
        n = lib.llama_state_get_size(ctx)
        state = (ctypes.c_uint8 * n)()
        assert lib.llama_state_get_data(ctx, state, n) > 0
        other = context(model)
        assert lib.llama_state_set_data(other, state, n) > 0
        assert decode(other, [9]) == 0
        print(bits(other, model))
    """
    plain = plugged.script(text, model, plugged=False)
    assert plugged.script(text, model, cache="30%").stdout == plain.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache": "1KiB"}, ["below the floor", "REMOE_CACHE="]),
        ({"cache": "plenty"}, ["REMOE_CACHE", "'plenty'"]),
        ({"cache": "1MiB", "policy": "nonsense"}, ["nonsense"]),
        ({"cache": "1MiB", "prefetch": "maybe"}, ["REMOE_PREFETCH", "auto, on, off"]),
        ({"cache": "1MiB", "routers": "default"}, ["REMOE_ROUTERS", "router overlay"]),
        ({"cache": "1MiB", "profile": "/nowhere/x"}, ["REMOE_PROFILE", "/nowhere/x"]),
        ({"cache": "1MiB", "profile": "/"}, ["REMOE_PROFILE", "cannot read /"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    model: Path, settings: dict[str, str], words: list[str]
) -> None:
    done = plugged.script("print(bool(load(sys.argv[1])))", model, **settings)
    assert done.stdout.strip() == "False"
    assert all(word in plugged.said(done) for word in words), plugged.said(done)


def test_a_model_that_is_not_mapped_is_refused(model: Path) -> None:
    text = "print(bool(load(sys.argv[1], load_mode=lib.LLAMA_LOAD_MODE_NONE)))"
    done = plugged.script(text, model, cache="30%")
    assert done.stdout.strip() == "False"
    assert "--no-mmap" in plugged.said(done)


def test_dense_models_are_left_alone(folder: Path) -> None:
    import tiny_dense

    path = tiny_dense.make(folder / "dense.gguf")
    text = """
        model = load(sys.argv[1]); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        print(bits(ctx, model))
    """
    plain = plugged.script(text, path, plugged=False)
    done = plugged.script(text, path, cache="30%")
    assert done.stdout == plain.stdout
    assert plugged.said(done) == ""


def test_a_failing_disk_fails_the_request_alone(folder: Path, model: Path) -> None:
    path = folder / "last-small.gguf"
    begin = plugged.experts_last(model, path)
    text = """
        import os
        path, begin = sys.argv[1], int(sys.argv[2])
        model = load(path); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        right = bits(ctx, model)
        whole = open(path, "rb").read()
        for cut in (begin + 100, begin + (len(whole) - begin) // 2):
            os.truncate(path, cut)
            failed = 0
            for token in range(10, 40):
                forget(ctx)
                failed += decode(ctx, [token, token + 1]) != 0
            print(failed > 0)
            with open(path, "r+b") as file:
                file.seek(cut)
                file.write(whole[cut:])
            forget(ctx)
            assert decode(ctx, [5, 6, 7]) == 0
            assert bits(ctx, model) == right
    """
    done = plugged.script(text, path, begin, cache="0.001%")
    assert done.stdout.split() == ["True", "True"]
    told = plugged.said(done)
    assert all(word in told for word in (str(path), "was truncated"))


def test_a_disk_with_errors_fails_the_request_alone(folder: Path, model: Path) -> None:
    (folder / "source").mkdir()
    (folder / "disk").mkdir()
    path = folder / "source/last.gguf"
    begin = plugged.experts_last(model, path)
    text = """
        import os
        path, begin, fail = sys.argv[1], int(sys.argv[2]), sys.argv[3]
        file = open(path, "rb")
        model = load(path); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        right = bits(ctx, model)
        open(fail, "w").close()
        os.posix_fadvise(file.fileno(), begin, 0, os.POSIX_FADV_DONTNEED)
        for token in range(10, 40):
            forget(ctx)
            if decode(ctx, [token, token + 1]) != 0:
                print("failed")
                break
        os.unlink(fail)
        forget(ctx)
        assert decode(ctx, [5, 6, 7]) == 0
        assert bits(ctx, model) == right
    """
    with fuse_folder.mounted(folder / "source", folder / "disk") as disk:
        done = plugged.script(
            text, disk / "last.gguf", begin, folder / "source/.fail", cache="0.001%"
        )
    assert done.stdout.split() == ["failed"]
    told = plugged.said(done)
    assert all(word in told for word in (str(disk), "layer", "expert", "offset", os.strerror(5)))


def test_a_replaced_file_fails_the_request_alone(folder: Path) -> None:
    path = tiny_moe.make(folder / "replaced.gguf", "qwen3moe", "Q8_0")
    other = tiny_moe.make(folder / "replacing.gguf", "qwen3moe", "Q8_0", seed=7)
    text = """
        import os
        path, other = sys.argv[1:]
        model = load(path); ctx = context(model)
        assert decode(ctx, [5, 6, 7]) == 0
        right = bits(ctx, model)
        os.rename(path, path + ".away")
        os.rename(other, path)
        forget(ctx)
        print(decode(ctx, [5, 6, 7]) != 0)
        os.rename(path + ".away", path)
        forget(ctx)
        assert decode(ctx, [5, 6, 7]) == 0
        assert bits(ctx, model) == right
        with open(path, "r+b") as file:  # as a tool that writes into the file would
            file.seek(-100, 2)
            file.write(bytes(50))
        forget(ctx)
        print(decode(ctx, [5, 6, 7]) != 0)
    """
    done = plugged.script(text, path, other, cache="100%")
    assert done.stdout.split() == ["True", "True"]
    told = plugged.said(done)
    assert all(word in told for word in (str(path), "was replaced", "was modified"))


def test_an_adapter_on_experts_is_refused(folder: Path, model: Path) -> None:
    dense, expert = [
        tiny_adapter.write(folder / f"{name}.lora.gguf", model, f"blk.0.{name}.weight")
        for name in ("attn_q", "ffn_up_exps")
    ]
    text = """
        import ctypes
        model = load(sys.argv[1])
        adapter = lib.llama_adapter_lora_init(model, sys.argv[2].encode())
        print(bool(adapter))
        if adapter:
            ctx = context(model)
            scales = (ctypes.c_float * 1)(1.0)
            lib.llama_set_adapters_lora(ctx, (lib.llama_adapter_lora_p_ctypes * 1)(adapter), 1, scales)
            assert decode(ctx, [5, 6, 7]) == 0
            print(bits(ctx, model))
    """
    plain = plugged.script(text, model, dense, plugged=False)
    assert plugged.script(text, model, dense, cache="30%").stdout == plain.stdout
    refused = plugged.script(text, model, expert, cache="30%")
    assert refused.stdout.strip() == "False"
    assert "adapter" in plugged.said(refused)
