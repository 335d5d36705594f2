"""Compare next tokens: a GGUF in llama.cpp, and its Hugging Face folder in transformers and vLLM.

    python tools/small_model/next_tokens.py models/remoe-small-q8_0.gguf --text models/heldout/*.txt \\
        --work build/next-tokens -o docs/results/next-tokens.json

The GGUF's weights, as its quantisation left them, are written to WORK as a GGUF of F32 and as a folder of
float32, with the routers of an overlay if one is given. So nothing is left but how an engine computes. Of
every position of windows of the texts it is noted which token an engine holds for the likeliest, and how
far the second one is behind. `--folder-dtype float16` shows what rounding in the folder costs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Windows = npt.NDArray[np.int64]
Choices = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.float32]
]  # likeliest tokens, distance to the second


def main() -> None:
    """Print a line for each engine; write the figures as JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--text", type=Path, nargs="+", required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, default=Path("models/tokenizer.json"))
    p.add_argument("--routers", type=Path, help="an overlay's GGUF")
    p.add_argument(
        "--with", dest="engines", nargs="+", default=["f16-cache", "transformers", "vllm"],
        choices=ENGINES,
    )  # fmt: skip
    p.add_argument("--folder-dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    p.add_argument("--window", type=int, default=512)
    p.add_argument("--windows", type=int, default=6, help="of each text")
    p.add_argument("-o", "--out", type=Path)
    args = p.parse_args()
    gguf, folder = written(args.model, args.routers, args.tokenizer, args.work, args.folder_dtype)
    windows = cut(args.text, args.tokenizer, args.window, args.windows)
    reference = alone("f32-cache", gguf, folder, windows)
    result: dict[str, Any] = {
        "model": args.model.name,
        "routers": args.routers.name if args.routers else "the model's own",
        "folder": args.folder_dtype,
        "texts": [path.name for path in args.text],
        "window": args.window,
        "against": "llama.cpp, weights and KV cache in F32",
        "engines": {},
    }
    for engine in args.engines:
        result["engines"][engine] = compared(reference, alone(engine, gguf, folder, windows))
        print(f"{engine}: {result['engines'][engine]}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def compared(reference: Choices, found: Choices) -> dict[str, Any]:
    """Say how many tokens are the same; of the others, how far the second was behind in the reference."""
    differ = reference[0] != found[0]
    gaps = np.sort(reference[1][differ])[::-1]
    return {
        "positions": int(differ.size),
        "differ": int(differ.sum()),
        "same": round(1 - float(differ.mean()), 6),
        "widest_gaps": [round(float(gap), 4) for gap in gaps[:5]],
    }


def written(
    model: Path, overlay: Path | None, tokenizer: Path, work: Path, dtype: str
) -> tuple[Path, Path]:
    """Write a GGUF's weights as F32 and as a Hugging Face folder; return both paths."""
    import torch
    from gguf import GGUFReader

    from moe.gguf_file import read_gguf, write_gguf
    from moe.hf_folder import write_hf

    moe = read_gguf(model)
    for tensor in GGUFReader(overlay).tensors if overlay else []:
        block = re.fullmatch(r"blk\.(\d+)\.ffn_gate_inp\.weight", tensor.name)
        if block is None or tensor.tensor_type.name != "F32":
            sys.exit(f"{overlay}: {tensor.name} in {tensor.tensor_type.name} is no router in F32")
        with torch.no_grad():
            moe.blocks[int(block[1])].experts.router.weight.copy_(
                torch.from_numpy(tensor.data.copy())
            )
    work.mkdir(parents=True, exist_ok=True)
    write_gguf(moe, tokenizer, work / "f32.gguf", "f32", 1)
    write_hf(moe, tokenizer, work / "hf", getattr(torch, dtype))
    return work / "f32.gguf", work / "hf"


def cut(texts: list[Path], tokenizer: Path, length: int, n: int) -> Windows:
    """Cut the first `n` windows of `length` tokens out of each text, documents behind one another."""
    from tokenizers import Tokenizer

    from data.tokens import END_OF_TEXT

    words = Tokenizer.from_file(str(tokenizer))
    found = []
    for path in texts:
        ids: list[int] = []
        for document in path.read_text("utf-8").split(END_OF_TEXT):
            ids += [words.token_to_id(END_OF_TEXT), *words.encode(document.strip("\n")).ids]
        whole = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
        if len(whole) < n:
            sys.exit(f"{path} has {len(whole)} windows of {length} tokens, not {n}")
        found += whole[:n]
    return np.array(found, np.int64)


def alone(engine: str, gguf: Path, folder: Path, windows: Windows) -> Choices:
    """Run an engine in a process of its own: each brings an OpenMP of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(ENGINES[engine], gguf, folder, windows).result()


def llama_cpp_choices(gguf: Path, windows: Windows, cache: str) -> Choices:
    """Ask stock llama.cpp, its KV cache in "F32" or, its default, in "F16"."""
    import llama_cpp

    kind = getattr(llama_cpp, f"GGML_TYPE_{cache}")
    length = windows.shape[1]
    llama = llama_cpp.Llama(
        str(gguf), n_ctx=length, n_batch=length, n_ubatch=length, logits_all=True, verbose=False,
        type_k=kind, type_v=kind, flash_attn=False,
    )  # fmt: skip
    logits = []
    for window in windows:
        llama.reset()
        llama.eval(window.tolist())
        logits.append(best(np.array(llama.scores[:length], np.float32)))
    llama.close()
    return joined(logits)


def transformers_choices(gguf: Path, folder: Path, windows: Windows) -> Choices:
    """Ask transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return joined(
            [best(model(torch.from_numpy(window)[None]).logits[0].numpy()) for window in windows]
        )


def vllm_choices(gguf: Path, folder: Path, windows: Windows) -> Choices:
    """Ask vLLM, in float32: what it held for the likeliest at every position of a prompt."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), dtype="float32", enforce_eager=True, max_model_len=windows.shape[1] + 1,
        max_num_seqs=1, enable_prefix_caching=False, max_logprobs=2,
    )  # fmt: skip
    asked = SamplingParams(max_tokens=1, temperature=0, logprobs=2, prompt_logprobs=2)
    rows = []
    for window in windows:
        (out,) = llm.generate({"prompt_token_ids": window.tolist()}, asked, use_tqdm=False)
        row = []
        for each in [*out.prompt_logprobs[1:], out.outputs[0].logprobs[0]]:
            first, second = sorted(
                ((-found.logprob, token) for token, found in each.items() if found.rank <= 2)
            )[:2]
            row.append((first[1], second[0] - first[0]))
        tokens, gaps = zip(*row, strict=True)
        rows.append((np.array(tokens, np.int64), np.array(gaps, np.float32)))
    return joined(rows)


def best(logits: npt.NDArray[np.float32]) -> Choices:
    """Give the likeliest token of every row [n, vocab], and how far the second is behind."""
    two = np.partition(logits, -2, axis=-1)[:, -2:]
    return logits.argmax(-1), two[:, 1] - two[:, 0]


def joined(windows: list[Choices]) -> Choices:
    """Put windows behind one another."""
    tokens, gaps = zip(*windows, strict=True)
    return np.concatenate(tokens), np.concatenate(gaps)


def f32_cache(gguf: Path, folder: Path, windows: Windows) -> Choices:
    """Ask llama.cpp with a KV cache in F32."""
    return llama_cpp_choices(gguf, windows, "F32")


def f16_cache(gguf: Path, folder: Path, windows: Windows) -> Choices:
    """Ask llama.cpp with its default KV cache."""
    return llama_cpp_choices(gguf, windows, "F16")


ENGINES: dict[str, Callable[[Path, Path, Windows], Choices]] = {
    "f32-cache": f32_cache,
    "f16-cache": f16_cache,
    "transformers": transformers_choices,
    "vllm": vllm_choices,
}


if __name__ == "__main__":
    main()
