"""Judge a checkpoint on held-out text beside xz -9 and a 5-gram, and say how its experts are used.

python tools/small_model/evaluate_moe.py --data build/data --run build/run -o small-model.json
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import torch

from data.tokens import without_markers
from export_moe import load_model
from moe.evaluate import DomainResult, evaluate, token_bytes
from moe.model import MoeModel
from moe.ngram import KneserNey


def main() -> None:
    """Write the figures as JSON and print a table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder that build_data.py wrote")
    p.add_argument("--run", type=Path, required=True, help="folder of train_moe.py")
    p.add_argument("--stage", default="chat", choices=("base", "chat"))
    p.add_argument("--tokens", type=int, default=50_000, help="held-out tokens per domain")
    p.add_argument(
        "--ngram-tokens", type=int, default=0, help="training tokens of the 5-gram; 0: all"
    )
    p.add_argument("--window", type=int, default=0, help="tokens per window; 0: the context")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("-o", "--out", type=Path, required=True)
    args = p.parse_args()
    torch.set_num_threads(args.threads)

    rows = np.concatenate(
        [
            _rows(np.fromfile(path, dtype="<u2"), args.ngram_tokens)
            for path in sorted((args.data / "train").glob("*.bin"))
        ]
    )
    print(f"5-gram: fitting on {rows.size} tokens", file=sys.stderr)
    ngram = KneserNey(rows)
    model = load_model(args.run / f"{args.stage}.pt")
    sizes = token_bytes(args.data / "tokenizer.json")
    result: dict[str, object] = {"stage": args.stage, "ngram_tokens": int(rows.size)}
    domains: dict[str, object] = {}
    for path in sorted((args.data / "heldout").glob("*.bin")):
        judged = evaluate(
            model, path, sizes, torch.device("cpu"), args.tokens, rows=8, window=args.window
        )
        stream = np.fromfile(path, dtype="<u2").astype(np.int64)[: judged.tokens + 1]
        bits = ngram.bits(stream)
        ngram_bpb = float(bits.sum() / sizes[stream[ngram.order - 1 :]].sum())
        text = without_markers(path.with_suffix(".txt").read_bytes())
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        domains[path.stem] = {
            "bits_per_byte": round(judged.bits_per_byte, 4),
            "five_gram_bits_per_byte": round(ngram_bpb, 4),
            "xz_9e_bits_per_byte": round(8 * len(packed) / len(text), 4),
            "perplexity_per_token": round(float(np.exp(judged.loss)), 3),
            "tokens": judged.tokens,
            "bytes": judged.bytes,
            "xz_text_bytes": len(text),
            "load": load_spread(judged),
        }
        print(f"{path.stem:11s} {domains[path.stem]}", file=sys.stderr)
    result["domains"] = domains
    result["window"] = args.window or model.config.context
    result["shared_by_successive_tokens"] = round(shared_experts(model, args.data), 4)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known["heldout"] = result
    known["training"] = training_figures(args.run / f"{args.stage}.pt", model)
    args.out.write_text(json.dumps(known, indent=1) + "\n")


def training_figures(checkpoint: Path, model: MoeModel) -> dict[str, object]:
    """Return what the model is and how far it was trained."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    c = model.config
    total = sum(p.numel() for p in model.parameters())
    idle = c.layers * (c.experts - c.top_k) * 3 * c.embed * c.expert_ffn
    history = state["history"]
    seconds = {h["stage"]: h["seconds"] for h in history}
    return {
        "config": state["config"],
        "parameters": round(total / 1e6, 2),
        "active": round((total - idle) / 1e6, 2),
        "tokens": history[-1]["tokens"],
        "seconds": round(sum(seconds.values()), 1),
        "length": state["length"],
        "last_loss": {h["stage"]: round(h["loss"], 4) for h in history},
    }


def _rows(stream: np.ndarray, limit: int, width: int = 4096) -> np.ndarray:
    stream = stream.astype(np.int64) & 0x7FFF
    if limit:
        stream = stream[:limit]
    return stream[: len(stream) // width * width].reshape(-1, width)


def load_spread(judged: DomainResult) -> list[dict[str, float]]:
    """Return, per layer, the least and most used experts (1 is even), entropy, dead ones."""
    out = []
    for counts in judged.counts.double():
        share = counts / counts.sum()
        entropy = -(share[share > 0] * share[share > 0].log2()).sum()
        even = share * len(share)
        out.append(
            {
                "min": round(float(even.min()), 3),
                "max": round(float(even.max()), 3),
                "entropy_bits": round(float(entropy), 3),
                "dead": int((counts == 0).sum()),
            }
        )
    return out


@torch.no_grad()
def shared_experts(model: MoeModel, data: Path, tokens: int = 512) -> float:
    """Return the share of a token's experts that the token before it used too, over all layers."""
    shared = []
    for path in sorted((data / "heldout").glob("*.bin")):
        ids = torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64)[:tokens] & 0x7FFF)
        for layer in model.routes(ids[None]):
            one_hot = torch.zeros(len(layer), model.config.experts).scatter_(1, layer, 1.0)
            shared.append((one_hot[1:] * one_hot[:-1]).sum(1).mean() / layer.shape[1])
    return float(torch.stack(shared).mean())


if __name__ == "__main__":
    main()
