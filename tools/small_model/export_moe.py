"""Export a training checkpoint to GGUF (F16, Q8_0, Q4_0) and to a Hugging Face folder.

    python tools/small_model/export_moe.py --checkpoint build/run/chat.pt \\
        --tokenizer build/data/tokenizer.json --out build/export --types f16 q8_0 q4_0 --hf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from moe.config import MoeConfig
from moe.gguf_file import write_gguf
from moe.hf_folder import write_hf
from moe.model import MoeModel


def load_model(path: Path, device: str = "cpu") -> MoeModel:
    """Return the model of a checkpoint: what train_moe.py saved, or {config, model} alone."""
    state = torch.load(path, map_location=device, weights_only=True)
    model = MoeModel(MoeConfig(**state["config"]))
    model.load_state_dict({k: v.float() for k, v in state["model"].items()})
    return model.to(device).eval()


def main() -> None:
    """Write the files asked for."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--checkpoint", type=Path, help="a .pt of train_moe.py")
    p.add_argument(
        "--untrained", action="store_true", help="random weights of the same shape instead"
    )
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--name", default="small")
    p.add_argument(
        "--types",
        nargs="*",
        default=["f16", "q8_0", "q4_0"],
        choices=["f32", "f16", "q8_0", "q4_0"],
        help="f32 is for comparing with the trainer",
    )
    p.add_argument("--hf", action="store_true", help="also write OUT/hf")
    args = p.parse_args()
    if bool(args.checkpoint) == args.untrained:
        p.error("give --checkpoint or --untrained")
    trained_length = 0
    if args.untrained:
        model = MoeModel(MoeConfig())
        model.start(20)
        for _p_name, parameter in model.named_parameters():  # no zeros: bytes as real ones
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, 0.0, parameter.shape[-1] ** -0.5)
    else:
        model = load_model(args.checkpoint)
        state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        trained_length = state["length"]
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in args.types:
        path = args.out / f"{args.name}-{kind}.gguf"
        write_gguf(model, args.tokenizer, path, kind, trained_length)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    if args.hf:
        write_hf(model, args.tokenizer, args.out / "hf")
        print(args.out / "hf")


if __name__ == "__main__":
    main()
