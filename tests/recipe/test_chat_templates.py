"""`chat_template`: known by name, or jinja that is checked when the recipe is read."""

from __future__ import annotations

import builtins
from typing import Any

import jinja2
import pytest

from raymerge.errors import RecipeError
from raymerge.recipe import loads
from raymerge.recipe.chat_templates import BUILTIN, ChatTemplate
from tests.recipe.test_tokenizer_keys import HEAD


def read(text: str) -> ChatTemplate | None:
    return loads(f"{HEAD}{text}\n", path="r.yaml").chat_template


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
PROMPTS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n"
              "### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
              "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
              "<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
              "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_a_template_known_by_name_writes_its_familys_prompt(name: str) -> None:
    found = read(f"chat_template: {name}")

    assert found == ChatTemplate(name, BUILTIN[name])
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    prompt = environment.from_string(BUILTIN[name]).render(
        messages=TALK, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert prompt == PROMPTS[name]


def test_every_known_template_is_tried() -> None:
    assert PROMPTS.keys() == BUILTIN.keys()


def test_auto_is_left_to_the_sources() -> None:
    assert read("chat_template: auto") == ChatTemplate("auto", None)
    assert read("chat_template: null") is None


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages }}",
        "{% for m in messages %}{% if m %}{% break %}{% endif %}{% endfor %}",
        "{% generation %}{{ messages }}{%- endgeneration -%}",
        "{{ '{%' }}{# {% unclosed #}{%- set x = 1 -%}",
    ],
)
def test_jinja_is_taken_as_it_is(text: str) -> None:
    assert read(f"chat_template: {text!r}" if "'" not in text else f'chat_template: "{text}"') == (
        ChatTemplate("written out", text)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chat_template: chatlm", ("chat_template is 'chatlm'; allowed: alpaca, auto, chatml, "
                                  "exaone, llama3, mistral, or a jinja template. Did you mean "
                                  "'chatml'?")),
        ("chat_template: [chatml]", "chat_template is a list; allowed: a string"),
        ("chat_template: a template without any jinja in it at all",
         "chat_template is 'a template without any jinja in it at all'; allowed"),
        ("chat_template: '{% for m in all %}{{ m }}'", "chat_template: not a jinja template: "),
        ("chat_template: '{{ messages'", "chat_template: not a jinja template: "),
        ("chat_template: '{{ messages | nofilter }}'", "chat_template: not a jinja template: "),
    ],
)  # fmt: skip
def test_what_is_no_template_is_refused_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(text)

    assert caught.value.message.startswith(f"r.yaml:4: {message}")


def test_without_jinja_brackets_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "jinja2":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read("chat_template: '{{ messages }}'") is not None
    with pytest.raises(RecipeError, match=r"r.yaml:4: chat_template: not a jinja template: a \{\{"):
        read("chat_template: '{{ messages'")
