"""Write a conversation as a model's own chat template does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from remoe_edge.errors import ModelError, UnsupportedError
from remoe_edge.native import llama_cpp

Message = Mapping[str, str]


def of(llama: Any) -> str | None:
    """Give the chat template of a `llama_cpp.Llama`, None if the model has none."""
    template = llama.metadata.get("tokenizer.chat_template")
    return None if template is None else str(template)


def render(llama: Any, messages: Sequence[Message], path: Path) -> tuple[str, list[str], bool]:
    """Write {"role", "content"} messages: (text, stop strings, add a BOS token?).

    Raises UnsupportedError without a template, ModelError for one that fails; both name `path`.
    """
    template = of(llama)
    if template is None:
        raise UnsupportedError(
            f"{path} has no chat template: it continues text and does not answer"
        )
    ids = (llama.token_eos(), llama.token_bos())
    eos, bos = (llama._model.token_get_text(i) if i != -1 else "" for i in ids)
    try:
        formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
            template=template, eos_token=eos, bos_token=bos
        )
        result = formatter(messages=list(messages))
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(f"the chat template of {path} fails: {error}") from error
    stop = result.stop if isinstance(result.stop, list) else [result.stop or ""]
    return result.prompt, [each for each in stop if each], not result.added_special
