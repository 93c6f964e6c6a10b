"""`chat_template`: the models' own, one known by name, or one written out.

The known ones are the public prompt formats of the model families they are called after, as jinja
that any chat interface renders: `messages` of `role` and `content`, `add_generation_prompt`, and
the tokenizer's `bos_token` and `eos_token`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from raymerge.recipe.document import Fields, Node
from raymerge.recipe.wording import did_you_mean, listed

AUTO = "auto"

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
{%- else -%}
{{- '### Response:\\n' + message['content'] + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '### Response:\\n' -}}
{%- endif -%}
"""
_CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_EXAONE = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{- '[|system|][|endofturn|]\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '[|' + message['role'] + '|]' + message['content'] -}}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '[|assistant|]' -}}
{%- endif -%}
"""
_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
_MISTRAL = """\
{{- bos_token -}}
{%- set opening = namespace(text='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set opening.text = message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- '[INST] ' + opening.text + message['content'] + ' [/INST]' -}}
{%- set opening.text = '' -%}
{%- else -%}
{{- ' ' + message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
BUILTIN = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
"""Templates known by name."""

# transformers renders these two tags, which jinja by itself does not have.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_PAIRS = (("{{", "}}"), ("{%", "%}"))


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Which chat template the output gets."""

    name: str
    """`auto`, a known name, or `written out`."""
    text: str | None
    """The jinja; None leaves it to the sources."""


def read_chat_template(top: Fields) -> ChatTemplate | None:
    """Read `chat_template`; None where the recipe has none.

    Raises:
        RecipeError: Neither a known name nor a jinja template.
    """
    node = top.get("chat_template")
    if node is None:
        return None
    text = node.as_text("chat_template")
    if text == AUTO:
        return ChatTemplate(AUTO, None)
    if text in BUILTIN:
        return ChatTemplate(text, BUILTIN[text])
    if not any(opening in text for opening, _ in _PAIRS):
        known = [AUTO, *BUILTIN]
        raise node.place.error(
            f"chat_template is {node.shown}; allowed: {listed(known)}, or a jinja template."
            f"{did_you_mean(text, known)}"
        )
    _check_jinja(node, text)
    return ChatTemplate("written out", text)


def _check_jinja(node: Node, text: str) -> None:
    try:
        import jinja2
    except ModuleNotFoundError:
        _check_pairs(node, text)
        return
    environment = jinja2.Environment(  # noqa: S701 - nothing is rendered here
        extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True
    )
    try:
        environment.from_string(_GENERATION.sub("", text))
    except jinja2.TemplateSyntaxError as error:
        raise node.place.error(
            f"chat_template: not a jinja template: {error.message} (its line {error.lineno})"
        ) from error


def _check_pairs(node: Node, text: str) -> None:
    """What can be told without jinja: everything that is opened is closed."""
    for opening, closing in _PAIRS:
        if text.count(opening) > text.count(closing):
            raise node.place.error(
                f"chat_template: not a jinja template: a {opening} without its {closing}"
            )
