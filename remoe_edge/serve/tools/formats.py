"""Which way of writing calls a chat template means; the ways that are known and cannot be read yet."""

from __future__ import annotations

from remoe_edge.errors import UnsupportedError
from remoe_edge.serve.tools.format import ToolFormat
from remoe_edge.serve.tools.harmony import Harmony
from remoe_edge.serve.tools.hermes import Hermes
from remoe_edge.serve.tools.llama3 import Llama3
from remoe_edge.serve.tools.mistral import Mistral

# The first that matches. A marker that stands for one way only comes before what is common.
FORMATS: tuple[ToolFormat, ...] = (
    Harmony(),
    Mistral(named=True),
    Mistral(named=False),
    Hermes(),
    Llama3(),
)
_NOT_YET = {
    "<function=": "Qwen3-Coder's and Qwen3.5's",
    "<arg_key>": "GLM-4.5's",
    "tool\u2581calls\u2581begin": "DeepSeek's",
    "<|tool_call|>": "Granite's",
    "<|tool_call_start|>": "LFM2's",
    "<minimax:tool_call>": "MiniMax's",
    "<|START_ACTION|>": "Command's",
}


def of_template(template: str) -> ToolFormat:
    """Tell how a chat template has its model write calls. Raises UnsupportedError, which names it."""
    for marker, whose in _NOT_YET.items():
        if marker in template:
            raise UnsupportedError(f"tools: {whose} way of calling them cannot be read yet")
    if "tools" in template:
        for each in FORMATS:
            if each.matches(template):
                return each
        raise UnsupportedError("tools: how this model calls them is not known")
    raise UnsupportedError("tools: this model's chat template has no place for them")
