"""From texts to tokens: once, before any arm runs, so that all get the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remoe_edge.bench.process import Question
from remoe_edge.bench.workloads import Prompt
from remoe_edge.engine import chat_template, metadata
from remoe_edge.engine.chat_template import ChatTemplate
from remoe_edge.engine.llama import Buffers, FilePath, listening
from remoe_edge.engine.tokenizer import Tokenizer
from remoe_edge.errors import InputError, ModelError
from remoe_edge.files.reading import read_text


class Vocabulary:
    """Hold a model's tokens and chat template, none of its weights. Raises ModelError."""

    def __init__(self, path: Path) -> None:
        try:
            with listening(Buffers(), verbose=False):
                self._llama = metadata.Llama(FilePath(path), vocab_only=True, verbose=False)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"llama.cpp refused {path}: {error}") from error
        self._tokenizer = Tokenizer(self._llama)
        self._template = ChatTemplate(self._llama, self._tokenizer, path)

    def ask(self, prompts: Sequence[Prompt], *, raw: bool) -> list[Question]:
        """Turn prompts into tokens, through the chat template unless `raw` or there is none."""
        plain = raw or chat_template.of(self._llama) is None
        questions = []
        for prompt in prompts:
            text = prompt.text
            if not plain:
                text = self._template.render([{"role": "user", "content": prompt.text}])
            tokens = self._tokenizer.encode(text, special=not plain)
            questions.append(Question(prompt.name, tokens))
        return questions

    def follow(self, text_path: Path, n_prompt: int, n_tokens: int) -> Question:
        """Make the question that reads a text: its first tokens are the prompt, the rest is fed."""
        tokens = self._tokenizer.encode(read_text(text_path, "text"), special=True)
        if len(tokens) < n_prompt + n_tokens:
            raise InputError(
                f"{text_path} has {len(tokens)} tokens, and {n_prompt} + {n_tokens} are to be read"
            )
        rest = tokens[n_prompt : n_prompt + n_tokens]
        return Question(f"text/{text_path.name}", tokens[:n_prompt], rest)
