"""Write models/README.md from the data's manifest, the figures and the samples.

python tools/small_model/model_card.py --manifest build/data/manifest.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from data.packages import CODE_PACKAGES, TEACHER, TEXT_PACKAGES

EXPORT_NOTE = """
llama.cpp rounds activations to the weights' precision before a product, and keeps its KV cache in
F16 unless it is told otherwise. Where a token's sixth and seventh expert are nearly tied they may
then change places, and that position's logits jump: the largest errors. The F32 file with its
cache in F32 shows what the export itself does.
"""
ROOT = Path(__file__).resolve().parents[2]

HEAD = """# remoe-small

A small, fine-grained mixture of experts for a first chat, for tests and for experiments on
routing. Architecture `qwen3moe`: {layers} layers, {experts} experts of {expert_ffn}, top-{top_k}
(renormalised), width {embed}, {heads} query and {kv_heads} KV heads of {head_dim} with QK-norm,
separate embeddings and output, byte-level BPE of {vocab} (pre-tokeniser `qwen2`), ChatML.
{parameters:.1f}M parameters, {active:.1f}M of them active per token. Licence of the weights:
Apache-2.0; the texts' licences are below.

`remoe-small-q8_0.gguf` ({mib:.1f} MiB) is the shipped file; `remoe-small-q8_0.routers.gguf` holds
routers tuned for reuse, to be laid over it: `remoe-edge chat --routers default` (docs/tuning.md).

**How far it is trained.** {tokens:.1f}M tokens on two shared CPU cores: this is far from the
hundreds of millions of tokens that a model of this size wants. It answers in connected English
and knows next to nothing: what it says of the world is made up, and most of its sums are wrong.
It is there to be run, streamed and measured. The recipe below is complete and resumable; with
`--device cuda` the same trainer runs in bfloat16 with fixed-capacity dispatch (that path has
been tested for equal results on a CPU only). Trained at sequences of {length} tokens; the
file states {context}, the length that the trainer's defaults use.

{growth}
![Training loss of the first run](loss.png) ![of the dialogue stage](loss-dialogue.png)

## Data

Documents are held out per domain, by a hash of their name, before anything else. A training
document is dropped where more than 5 % of its 24-token windows occur in held-out text. What only
the dialogue stage sees: {chat}.

| domain | training bytes | tokens | held-out bytes | dropped as overlapping |
|---|---:|---:|---:|---:|
"""

LICENCES = """
| package | licence |
|---|---|
{rows}
| code: {code} | MIT, BSD, Apache, PSF or ISC, as each states; anything else stops the builder |
| GSM8K (train split) | MIT |
| dialogue stage: answers of SmolLM2-135M-Instruct, as {teacher} carries it | Apache-2.0 |
| dialogue stage: greetings, sums, small functions by tools/small_model/data | Apache-2.0, own |

From BIG-bench: reading passages, Topical-Chat and TimeDial dialogues, old novels and plays;
not `movie_dialog*`, `real_or_fake_text*`, news, reviews, exams or web forums. BIG-bench's
authors ask that their data stay out of training sets (their files carry a canary). Its licence
allows this use, but **no BIG-bench score of this model means anything**.
`heldout/` holds samples of held-out text whose sources are public domain or permissive, for
evaluation from a clone; `<|endoftext|>` ends each document, as in training.
"""

COMMANDS = """
## Commands

```sh
pip install '.[tune,plot]' -r tools/small_model/requirements.txt
python tools/small_model/ask_teacher.py --work build/data --seconds {teacher_seconds}
python tools/small_model/build_data.py --work build/data --gsm8k gsm8k_train.jsonl {data_arguments}
python tools/small_model/train_moe.py --data build/data --out build/run --device cpu \\
  {train_arguments}
python tools/small_model/train_moe.py --data build/data --out build/run --stage chat --device cpu \\
  --no-eval \\
  {chat_arguments}
tools/small_model/finish_small.sh build/data build/run build/export   # export, figures, samples
python tools/small_model/model_card.py --manifest build/data/manifest.json
```
"""


def main() -> None:
    """Write the card."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--manifest", type=Path, required=True)
    p.add_argument("--figures", type=Path, default=ROOT / "docs/results/small-model.json")
    p.add_argument("--growth", default="", help="a paragraph on how this run went")
    p.add_argument("--data-arguments", default="", help="as given to build_data.py")
    p.add_argument("--train-arguments", default="--plan-seconds 3600", help="to train_moe.py")
    p.add_argument("--chat-arguments", default="--plan-seconds 900", help="to its dialogue stage")
    p.add_argument("--teacher-seconds", type=int, default=1500, help="given to ask_teacher.py")
    args = p.parse_args()
    manifest = json.loads(args.manifest.read_text())
    figures: dict[str, Any] = json.loads(args.figures.read_text())
    shape = figures["training"]["config"]
    model = ROOT / "models" / "remoe-small-q8_0.gguf"
    text = HEAD.format(
        **shape,
        **{k: figures["training"][k] for k in ("parameters", "active", "length")},
        tokens=figures["training"]["tokens"] / 1e6,
        mib=model.stat().st_size / 2**20,
        growth=args.growth + "\n" if args.growth else "",
        chat=_conversations(manifest["chat"], manifest["domains"]),
    )
    for domain, row in manifest["domains"].items():
        text += (
            f"| {domain} | {row['train_bytes']:,} | {row['train_tokens']:,} "
            f"| {row['heldout_bytes']:,} | {row['dropped_as_overlapping']:,} |\n"
        )
    text += LICENCES.format(
        rows="\n".join(f"| {x.label} | {x.licence} |" for x in TEXT_PACKAGES),
        code=", ".join(x.name for x in CODE_PACKAGES),
        teacher=TEACHER.label,
    )
    text += _heldout(figures["heldout"]) + _export(figures["export"])
    text += COMMANDS.format(
        data_arguments=args.data_arguments,
        train_arguments=args.train_arguments,
        chat_arguments=args.chat_arguments,
        teacher_seconds=args.teacher_seconds,
    )
    text += "\n## Ten samples, unpicked\n\n"
    text += "Stock llama.cpp, the shipped file, temperature 0.6, top-p 0.9, top-k 40, repeat\n"
    text += "penalty 1.1, at most 120 tokens: `python tools/small_model/sample_chat.py "
    text += "models/remoe-small-q8_0.gguf`. The first two of these questions were\n"
    text += "trained on; of the others only questions of the same kinds.\n\n"
    text += (ROOT / "models" / "samples.md").read_text()
    (ROOT / "models" / "README.md").write_text(text.rstrip() + "\n")


def _conversations(chat: dict[str, int], domains: Container[str]) -> str:
    what = {
        "teacher": "answers of the teacher",
        "sums": "sums",
        "small functions": "requests for small functions",
        "identity": "greetings and the like",
    }
    parts = [f"{chat[key]:,} {name}" for key, name in what.items() if chat.get(key)]
    made = sum(count for name, count in chat.items() if name in domains)
    return ", ".join([*parts, f"{made:,} conversations made of the training documents below"])


def _heldout(figures: dict[str, Any]) -> str:
    text = "\n## Held-out text\n\nBits per byte, lower is better; windows of "
    text += f"{figures['window']} tokens. The 5-gram (interpolated Kneser-Ney over the same "
    text += f"tokens) is fitted on {figures['ngram_tokens'] / 1e6:.1f}M training tokens, all of "
    text += "them; `xz -9e` sees the whole held-out file.\n\n"
    text += "| domain | model | 5-gram | xz -9e | expert use, least .. most (even = 1) | "
    text += "entropy of 6 bits, least layer | dead |\n|---|---:|---:|---:|---:|---:|---:|\n"
    for domain, row in figures["domains"].items():
        load = row["load"]
        text += (
            f"| {domain} | {row['bits_per_byte']:.3f} | {row['five_gram_bits_per_byte']:.3f} "
            f"| {row['xz_9e_bits_per_byte']:.3f} | {min(x['min'] for x in load):.2f} .. "
            f"{max(x['max'] for x in load):.2f} | {min(x['entropy_bits'] for x in load):.2f} "
            f"| {sum(x['dead'] for x in load)} |\n"
        )
    share = figures["shared_by_successive_tokens"]
    rows = figures["domains"].values()
    better = {
        name: sum(r["bits_per_byte"] < r[key] for r in rows)
        for name, key in (("5-gram", "five_gram_bits_per_byte"), ("xz", "xz_9e_bits_per_byte"))
    }
    text += f"\nThe model is ahead of the 5-gram in {better['5-gram']} and of xz in {better['xz']} "
    text += f"of {len(rows)} domains"
    text += ".\n" if min(better.values()) == len(rows) else ": it needs more training.\n"
    text += "\nUse of every layer is in docs/results/small-model.json. Of a token's experts, "
    return text + f"{share:.1%} were used by the token before it.\n"


def _export(figures: dict[str, Any]) -> str:
    text = "\n## Exported files against the trainer\n\nThe trainer in float32, nothing dropped, "
    text += f"over {figures['positions']:,} held-out positions.\n\n"
    text += "| file | max abs error of logits | of 99.9 % of positions | rms | same argmax "
    text += "| perplexity | trainer's |\n|---|---:|---:|---:|---:|---:|---:|\n"
    for name, row in figures.items():
        if isinstance(row, dict):
            text += (
                f"| {name} | {row['max_abs_error']:.4f} "
                f"| {row['max_abs_error_of_99.9%_of_positions']:.4f} | {row['rms_error']:.5f} "
                f"| {row['same_argmax']:.3%} | {row['perplexity']:.3f} "
                f"| {row['trainer_perplexity']:.3f} |\n"
            )
    return text + EXPORT_NOTE


if __name__ == "__main__":
    main()
