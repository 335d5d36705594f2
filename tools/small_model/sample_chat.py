"""Sample chat answers from a GGUF with stock llama.cpp, seeds and all, as Markdown.

python tools/small_model/sample_chat.py models/remoe-small-q8_0.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from remoe_edge import amx

PROMPTS = (
    "Hello! How are you today?",
    "Who are you?",
    "What does courage mean?",
    "Tell me about the history of London.",
    "Continue this story: The old captain stood at the window and looked at the sea.",
    "What is a file system in Linux?",
    "Write a Python function that adds two numbers.",
    "Tom has 5 apples and buys 3 more. How many apples does he have?",
    "Do you like music?",
    "Tell me about football.",
)


def main() -> None:
    """Print one answer per prompt; the seed is the prompt's number."""
    import llama_cpp

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--temperature", type=float, default=0.6)
    p.add_argument("--max-tokens", type=int, default=120)
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    amx.refuse_broken()
    for seed, prompt in enumerate(PROMPTS, 1):
        model = llama_cpp.Llama(
            str(args.model), n_ctx=1024, n_threads=args.threads, seed=seed, verbose=False
        )
        answer = model.create_chat_completion(
            [{"role": "user", "content": prompt}],
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            top_p=0.9,
            top_k=40,
            repeat_penalty=1.1,
            seed=seed,
        )["choices"][0]
        text = answer["message"]["content"].strip().replace("\n", "\n> ")
        print(
            f"**{prompt}** (seed {seed}, ended by {answer['finish_reason']})\n\n> {text}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
