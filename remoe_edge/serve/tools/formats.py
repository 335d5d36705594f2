"""Which way of writing calls a chat template means; the ways that are known and cannot be read yet."""

from __future__ import annotations

from remoe_edge.errors import UnsupportedError
from remoe_edge.serve.tools.deepseek import DeepSeek
from remoe_edge.serve.tools.format import ToolFormat
from remoe_edge.serve.tools.glm import Glm
from remoe_edge.serve.tools.granite import Granite
from remoe_edge.serve.tools.harmony import Harmony
from remoe_edge.serve.tools.hermes import Hermes
from remoe_edge.serve.tools.lfm2 import Lfm2
from remoe_edge.serve.tools.llama3 import Llama3
from remoe_edge.serve.tools.mistral import Mistral
from remoe_edge.serve.tools.qwen_tagged import QwenTagged

# The first that matches. A marker that stands for one way only comes before what is common.
FORMATS: tuple[ToolFormat, ...] = (
    Harmony(),
    Mistral(named=True),
    Mistral(named=False),
    QwenTagged(),
    Glm(),
    DeepSeek(fenced=True),
    DeepSeek(fenced=False),
    Granite(),
    Lfm2(),
    Hermes(),
    Llama3(),
)
_NOT_YET = {
    "<minimax:tool_call>": "MiniMax's",
    "<|START_ACTION|>": "Command's",
    "<|tool_calls_section_begin|>": "Kimi's",
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
