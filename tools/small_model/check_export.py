"""Compare exported files with the trainer: logits, argmax, tokenizer, perplexity.

    python tools/small_model/check_export.py --checkpoint build/run/chat.pt --data build/data \\
        --gguf build/export/small-f16.gguf build/export/small-q8_0.gguf --hf build/export/hf \\
        -o docs/results/small-model.json

The trainer runs in float32 with nothing dropped, on the weights as exported to F16. llama.cpp
rounds activations to F16 too before an F16 product, so that now and then the sixth and the
seventh expert of a token change places and its logits jump; an F32 file shows the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from export_moe import load_model
from remoe_edge import amx

WINDOW = 512


def main() -> None:
    """Write the comparison as JSON."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--checkpoint", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--gguf", type=Path, nargs="*", default=[])
    p.add_argument("--hf", type=Path)
    p.add_argument("--positions", type=int, default=20_480, help="over all domains")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("-o", "--out", type=Path, required=True)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    exact, model = load_model(args.checkpoint), load_model(args.checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "router" not in name:
                parameter.copy_(parameter.half().float())
    paths = sorted((args.data / "heldout").glob("*.bin"))
    each = -(-args.positions // (len(paths) * WINDOW))
    windows = np.stack(
        [
            np.fromfile(path, dtype="<u2").astype(np.int64)[i * WINDOW : (i + 1) * WINDOW]
            for path in paths
            for i in range(each)
        ]
    )
    result: dict[str, object] = {"positions": int(windows.size), "window": WINDOW}
    for path in args.gguf:
        reference = exact if path.stem.endswith("f32") else model
        for name, rounded in ((path.name, False), (f"{path.name}, KV cache in F16", True)):
            result[name] = against_llama_cpp(reference, path, windows, args.threads, rounded)
            print(f"{name}: {result[name]}", file=sys.stderr)
    if args.hf:
        result["transformers"] = against_transformers(
            model, args.hf, windows[:: max(1, len(windows) // 4)]
        )
        print(f"transformers: {result['transformers']}", file=sys.stderr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known["export"] = result
    args.out.write_text(json.dumps(known, indent=1) + "\n")


class Comparison:
    """Differences of two sets of logits, gathered window by window."""

    def __init__(self) -> None:
        self.worst, self.squares, self.same, self.count, self.values = 0.0, 0.0, 0, 0, 0
        self.loss, self.reference_loss, self.predicted = 0.0, 0.0, 0
        self.by_position: list[torch.Tensor] = []

    def add(self, ours: torch.Tensor, theirs: torch.Tensor, ids: torch.Tensor) -> None:
        """Take one window: logits [length, vocab] of both, and its tokens."""
        difference = (ours - theirs).abs()
        self.worst = max(self.worst, float(difference.max()))
        self.by_position.append(difference.amax(-1))
        self.squares += float(difference.double().pow(2).sum())
        self.values += difference.numel()
        self.same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.count += len(ids)
        self.reference_loss += float(F.cross_entropy(ours[:-1], ids[1:], reduction="sum"))
        self.loss += float(F.cross_entropy(theirs[:-1], ids[1:], reduction="sum"))
        self.predicted += len(ids) - 1

    def figures(self) -> dict[str, float]:
        """Return the figures over all windows."""
        return {
            "max_abs_error": round(self.worst, 5),
            "max_abs_error_of_99.9%_of_positions": round(
                float(torch.cat(self.by_position).quantile(0.999)), 5
            ),
            "rms_error": round(math.sqrt(self.squares / self.values), 6),
            "same_argmax": round(self.same / self.count, 6),
            "positions": self.count,
            "perplexity": round(math.exp(self.loss / self.predicted), 4),
            "trainer_perplexity": round(math.exp(self.reference_loss / self.predicted), 4),
        }


def against_llama_cpp(
    model: torch.nn.Module, path: Path, windows: np.ndarray, threads: int, rounded_cache: bool
) -> dict[str, float]:
    """Compare with a GGUF in stock llama.cpp, its KV cache in F32 or, its default, in F16."""
    import llama_cpp

    amx.refuse_broken()
    cache = llama_cpp.GGML_TYPE_F16 if rounded_cache else llama_cpp.GGML_TYPE_F32
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=WINDOW,
        n_batch=WINDOW,
        n_ubatch=WINDOW,
        logits_all=True,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=cache,
        type_v=cache,
        flash_attn=False,
        verbose=False,
    )
    comparison = Comparison()
    for window in windows:
        llama.reset()
        llama.eval(window.tolist())
        theirs = torch.from_numpy(np.array(llama.scores[: len(window)], dtype=np.float32))
        ids = torch.from_numpy(window)
        with torch.no_grad():
            comparison.add(model.logits(ids[None])[0], theirs, ids)  # type: ignore[operator]
    return comparison.figures()


def against_transformers(
    model: torch.nn.Module, folder: Path, windows: np.ndarray
) -> dict[str, float]:
    """Compare with the Hugging Face folder in transformers."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    comparison = Comparison()
    for window in windows:
        ids = torch.from_numpy(window)
        with torch.no_grad():
            comparison.add(model.logits(ids[None])[0], theirs(ids[None]).logits[0].float(), ids)  # type: ignore[operator]
    return comparison.figures()


if __name__ == "__main__":
    main()
