from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from vlmbatch.errors import CheckpointError, ConfigError, ErrorCode, RowError
from vlmbatch.models.chat import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# LLaVA-1.5's form: lists of parts only, images before text, generation blocks.
LLAVA = """\
{% for message in messages %}
{% if message['role'] != 'system' %}
{{ message['role'] | upper + ': ' }}{% endif %}
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}
{{ '<image>\n' }}{% endfor %}
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{% if message['role'] == 'assistant' %}
{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}
{% else %}
{{ part['text'] + ' ' }}{% endif %}
{% endfor %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# Vicuna's and Llama-2's form: strings only.
STRINGS = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
  {%- set system, rest = messages[0].content, messages[1:] %}
{%- else %}
  {%- set system, rest = '', messages %}
{%- endif %}
{%- for message in rest %}
  {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('roles must alternate, starting with user') }}
  {%- endif %}
  {%- if message.role == 'user' %}
    {%- set before = system ~ '\n' if loop.first and system else '' %}
    {{- '[INST] ' + before + message.content + ' [/INST]' }}
  {%- else %}
    {{- ' ' + message.content.strip() + eos_token }}
  {%- endif %}
{%- endfor %}"""

# Qwen's form: both, with a namespace, macros and loop controls.
BOTH = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}{{ content }}{%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}<|vision|><image><|end|>{%- continue -%}{%- endif -%}
      {{ part.text }}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set state = namespace(count=0, self='x') -%}
{%- for message in messages -%}
  {%- set state.count = state.count + 1 -%}
<|im_start|>{{ message.role }}
{{ text_of(message.content) }}<|im_end|>
{% endfor -%}
{{ {'b': '<é>', 'a': [1, 2]} | tojson(indent=2, sort_keys=true) }}
{{ state.count }}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

STRING_CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": 'What is "this" & <that>?'},
    {"role": "assistant", "content": " A circle.\n"},
    {"role": "user", "content": "Sure?"},
]
PART_CHAT = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is"},
            {"type": "image"},
            {"type": "text", "text": "this?"},
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}, {"type": "image"}]},
]


def transformers_render(template: str, messages: list[dict[str, Any]]) -> str:
    backend = Backend(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **TOKENS)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (LLAVA, PART_CHAT),
        (LLAVA, PART_CHAT[1:2]),
        (STRINGS, STRING_CHAT),
        (STRINGS, STRING_CHAT[1:]),
        (BOTH, STRING_CHAT),
        (BOTH, PART_CHAT),
        (BOTH, [*STRING_CHAT[:1], *PART_CHAT[1:]]),
    ],
    ids=["parts", "one", "strings", "no system", "both: strings", "both: parts", "mixed"],
)
def test_equals_transformers(template: str, messages: list[dict[str, Any]]) -> None:
    ours = ChatTemplate(template, TOKENS).render(messages)
    assert ours == transformers_render(template, messages)


def test_strings_reach_a_template_that_takes_only_parts() -> None:
    template = ChatTemplate(LLAVA, TOKENS)
    assert template.render(STRING_CHAT[1:2]) == 'USER: What is "this" & <that>? ASSISTANT:'


def test_parts_reach_a_template_that_takes_only_strings() -> None:
    template = ChatTemplate(STRINGS, TOKENS, image_token="<img>")
    text = template.render(PART_CHAT[1:2])
    assert text == "<s>[INST] What is\n<img>\nthis? [/INST]"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Look.", "USER: <image>\n<image>\nLook. ASSISTANT:"),
        ([{"type": "text", "text": "Look."}], "USER: <image>\n<image>\nLook. ASSISTANT:"),
        ([{"type": "image"}, {"type": "text", "text": "Look."}], "USER: <image>\nLook. ASSISTANT:"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "USER: <image>\nASSISTANT:"),
        ("Look <image> here.", "USER: Look <image> here. ASSISTANT:"),
    ],
)
def test_images_come_first_unless_placed(content: Any, expected: str) -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": content}]
    assert ChatTemplate(LLAVA, TOKENS).render(messages, num_images=2).lstrip() == expected


def test_messages_are_left_as_they_were() -> None:
    messages = json.loads(json.dumps(STRING_CHAT))
    ChatTemplate(LLAVA, TOKENS).render(messages, num_images=1)
    assert messages == STRING_CHAT


def test_nulls_are_absent_fields() -> None:
    part = {"type": "text", "text": "Look.", "image_url": None}
    message = {"role": "user", "content": [part], "name": None}
    text = ChatTemplate(BOTH, TOKENS).render([message])
    assert "null" not in text


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "empty"),
        (["hello"], "message 1 is 'hello'"),
        ([{"content": "x"}], "message 1: role is None"),
        ([{"role": "user"}], "message 1: content is None"),
        ([{"role": "user", "content": 7}], "content is 7"),
        ([STRING_CHAT[1], {"role": "user", "content": [7]}], "message 2: part 1 is 7"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "'audio'"),
        ([{"role": "user", "content": [{"type": "video"}]}], "videos are not taken"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "'video_url': videos are not"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 1: text is None"),
        ([{"role": "assistant", "content": "x"}], "roles must alternate"),
    ],
)
def test_bad_messages_are_row_errors(messages: list[Any], said: str) -> None:
    with pytest.raises(RowError) as caught:
        ChatTemplate(STRINGS, TOKENS).render(messages)
    assert caught.value.code == ErrorCode.PROMPT_INVALID
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for message in messages %}", "not valid Jinja"),
        ("{% include 'x' %}{{ 1 | nothing }}", "not valid Jinja"),
        ("Hello.", "leaves out the text"),
        ("{{ messages[0].content.__class__.__mro__ }}", "refuses a user's message: access to"),
        ("{{ messages[0].content * 10**6 }}", "refuses a user's message: .* makes it too large"),
    ],
)
def test_bad_templates_are_configuration_errors(template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ChatTemplate(template, TOKENS)


@pytest.mark.parametrize(
    "expression",
    [
        "messages[0].content * 10**9",
        "10**9 * messages[0].content",
        "[messages] * 10**9",
        "9**9**9",
        "messages.append(1)",
        "messages[0].content.format.__globals__.os",
        "namespace(__class__=1)",
        "lipsum(100000)",
        "range(10**9) | list",
    ],
)
def test_sandbox_stops_a_hostile_expression(expression: str) -> None:
    source = (
        "{% if messages[0].content == 'attack' %}{{ " + expression + " }}{% endif %}"
        "{{ messages[0].content }}"
    )
    template = ChatTemplate(source, TOKENS)
    assert template.render([{"role": "user", "content": "peace"}]) == "peace"
    with pytest.raises(RowError):
        template.render([{"role": "user", "content": "attack"}])


def test_output_is_bounded() -> None:
    source = (
        "{{ messages[0].content }}{% if messages[0].content == 'attack' %}"
        "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}{% endif %}"
    )
    with pytest.raises(RowError, match="4194304 characters"):
        ChatTemplate(source, TOKENS).render([{"role": "user", "content": "attack"}])


def write(folder: Path, name: str) -> None:
    """A template that prints ``name``, in the file of that name."""
    source = name + ": {{ messages[0].content }}"
    content = {
        "chat_template.jinja": source,
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "tool_use", "template": "no"}]}
            | {"chat_template": [{"name": "default", "template": source}]}
        ),
    }.get(name, json.dumps({"chat_template": source}))
    (folder / name).write_text(content)


def test_order_of_template_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        ChatTemplate.load(tmp_path, TOKENS)
    (tmp_path / "processor_config.json").write_text("{}")
    for name in ("tokenizer_config.json", "chat_template.jinja", "chat_template.json"):
        write(tmp_path, name)
        text = ChatTemplate.load(tmp_path, TOKENS).render([{"role": "user", "content": "Hi"}])
        assert text == f"{name}: Hi"
    own = tmp_path / "own.jinja"
    own.write_text("own: {{ messages[0].content }}")
    template = ChatTemplate.load(own, TOKENS)
    assert template.render([{"role": "user", "content": "Hi"}]) == "own: Hi"


def test_unreadable_template_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.jinja"):
        ChatTemplate.load(tmp_path / "missing.jinja", TOKENS)
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja: the chat template is not valid Jinja"):
        ChatTemplate.load(tmp_path / "bad.jinja", TOKENS)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate.load(tmp_path, TOKENS)
    (tmp_path / "chat_template.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        ChatTemplate.load(tmp_path, TOKENS)


@pytest.mark.parametrize("image_token", ["<image>", "<own>"])
def test_a_template_that_writes_the_image_itself(image_token: str) -> None:
    """As JoyCaption's does: an image that nothing stands for is not written twice."""
    source = "{% for m in messages %}{{ m.role }}: TOKEN{{ m.content }}{% endfor %}"
    template = ChatTemplate(source.replace("TOKEN", image_token), TOKENS, "<image>", "<own>")
    messages = [{"role": "user", "content": "What?"}]
    assert template.render(messages, 1) == f"user: {image_token}What?"
    parts = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    assert template.render(parts, 1) == f"user: {image_token}What?"
    for given in (
        [{"type": "image_url", "image_url": {"url": "a"}}, {"type": "text", "text": "What?"}],
        "<image>What?",
        [{"type": "text", "text": "<own>What?"}],
    ):
        shown = [{"role": "user", "content": given}]
        assert template.render(shown, 1) == f"user: {image_token}What?"
