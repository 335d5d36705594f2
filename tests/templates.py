"""Chat templates of our own, with the features of those that come with known models."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Qwen3: reasoning stays behind the last question, tools, thinking that can be turned off.
QWEN3 = """\
{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif -%}
{%- set ns = namespace(last=-1) %}
{%- for m in messages[::-1] %}
  {%- set index = (messages|length - 1) - loop.index0 %}
  {%- if m.role == "user" and ns.last < 0 %}{% set ns.last = index %}{% endif %}
{%- endfor %}
{%- for m in messages %}
  {%- set content = m.content if m.content is string else '' %}
  {%- if m.role == 'assistant' %}
    {%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' %}
    {%- if '</think>' in content and not reasoning %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > ns.last and reasoning %}
      {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
  {%- else %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
  {%- endif %}
{%- endif %}"""

# gpt-oss: channels, a date, macros, and a refusal of what was not taken apart.
HARMONY = """\
{%- macro header() %}
  {{- 'Current date: ' + strftime_now('%Y-%m-%d') }}
{%- endmacro %}
{{- '<|start|>system<|message|>' + header() + '<|end|>' }}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- if '<|channel|>analysis<|message|>' in m.content %}
      {{- raise_exception('give the reasoning as `thinking`') }}
    {%- endif %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
  {%- else %}
    {{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

# DeepSeek: BOS and EOS by their variables, and a prompt that ends inside the reasoning.
DEEPSEEK = """\
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{{- bos_token }}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- set content = m.content %}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
    {{- '<|Assistant|>' + content + eos_token }}
  {%- else %}{{- '<|User|>' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

# Mistral: turns that must alternate, system text in the first one, no token of its own for a turn.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate: user, assistant, user, ...') }}
  {%- endif %}
  {%- if m.role == 'user' %}
    {{- '[INST] ' + (system if loop.first else '') + m.content + '[/INST]' }}
  {%- else %}{{- ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""

# Llama 3: headers, trimmed texts, `is not none`, a date that may be given.
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if tools is not none %}{{ 'Tools: ' + tools | tojson(indent=4) }}{% endif %}
{%- for m in messages %}
  {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim }}
  {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# Granite: documents, loops left early, and what is marked for training.
GRANITE = """\
{%- for d in documents or [] %}
  {%- if loop.index > 2 %}{% break %}{% endif %}
  {{- '<|start_of_role|>document<|end_of_role|>' + d.text + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- for m in messages %}
  {%- if m.role == 'skip' %}{% continue %}{% endif %}
  {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' }}
  {%- if m.role == 'assistant' %}
    {%- generation %}{{ m.content + '<|end_of_text|>\\n' }}{% endgeneration %}
  {%- else %}{{- m.content + '<|end_of_text|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""
