"""Chat templates built of what those of Qwen2-VL, Qwen2.5-VL and Qwen3-VL are built of.

They are written anew here. Each renders as transformers renders it.
"""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vlmbatch.errors import RowError
from vlmbatch.models.chat import ChatTemplate

COUNTERS = """\
{% set pictures = namespace(seen=0) %}{% set clips = namespace(seen=0) %}\
{% for turn in messages %}\
{% if loop.first and turn['role'] != 'system' %}<|im_start|>system
Be helpful.<|im_end|>
{% endif %}<|im_start|>{{ turn['role'] }}
{% if turn['content'] is string %}{{ turn['content'] }}<|im_end|>
{% else %}{% for part in turn['content'] %}\
{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
{% set pictures.seen = pictures.seen + 1 %}\
{% if add_vision_id %}Picture {{ pictures.seen }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>\
{% elif part['type'] == 'video' or 'video' in part %}\
{% set clips.seen = clips.seen + 1 %}{% if add_vision_id %}Video {{ clips.seen }}: {% endif %}\
<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOLS = """\
{%- set pictures = namespace(seen=0) %}
{%- macro shown(content, count) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if 'image' in part or 'image_url' in part or part.type == 'image' %}
                {%- if count %}{% set pictures.seen = pictures.seen + 1 %}{% endif %}
                {%- if add_vision_id is defined and add_vision_id -%}
                    Picture {{ pictures.seen }}:{{ ' ' }}
                {%- endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- shown(messages[0].content, false) + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + shown(messages[0].content, false) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {{- shown(message.content, true) + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + shown(message.content, true) }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{% endif %}
                {%- if call.function %}{% set call = call.function %}{% endif %}
                {{- '<tool_call>' ~ call.name ~ ' ' }}
                {%- if call.arguments is string %}{{- call.arguments }}
                {%- else %}{{- call.arguments | tojson }}{% endif %}
                {{- '</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + shown(message.content, true) + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

THINKING = """\
{%- set last = namespace(query=messages | length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- set content = message.content %}
    {%- set text = content if content is string else
        content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') %}
    {%- if last.open and message.role == 'user'
        and not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) %}
        {%- set last.open = false %}
        {%- set last.query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- elif message.content is mapping %}
        {{- raise_exception('one part, not a list of them') }}
    {%- elif message.content is iterable and message.content is sequence %}
        {%- set content = namespace(text='') %}
        {%- for part in message.content %}
            {%- set content.text = content.text ~ (part.text if 'text' in part
                else '<|vision_start|><|image_pad|><|vision_end|>') %}
        {%- endfor %}
        {%- set content = content.text %}
    {%- endif %}
    {%- set thought = '' %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set thought = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n') %}
        {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > last.query and (loop.last or thought) %}
        {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>' }}
    {%- endif %}
{%- endif %}"""

TEMPLATES = {"counters": COUNTERS, "tools": TOOLS, "thinking": THINKING}
IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "Which is larger?"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "Hi"}],
    "one image": [{"role": "user", "content": [IMAGE, TEXT]}],
    "several images": [{"role": "user", "content": [IMAGE, TEXT, IMAGE, IMAGE]}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [TEXT, IMAGE]},
    ],
    "turns": [
        {"role": "user", "content": [IMAGE, IMAGE, TEXT]},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nThe first."},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}, IMAGE]},
    ],
    "tools": [
        {"role": "user", "content": "Look it up."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "find", "arguments": {"word": "é"}}},
                {"name": "find", "arguments": '{"word": "b"}'},
            ],
        },
        {"role": "tool", "content": "nothing"},
        {"role": "tool", "content": [IMAGE]},
    ],
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendered_as_by_transformers(template: str, chat: str) -> None:
    source, messages = TEMPLATES[template], CHATS[chat]
    (expected,), _ = render_jinja_template(
        conversations=[messages], chat_template=source, add_generation_prompt=True
    )
    assert ChatTemplate(source, {}).render(messages) == expected
    assert expected.count("<|image_pad|>") == sum(
        isinstance(message["content"], list) and message["content"].count(IMAGE)
        for message in messages
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_images_that_nothing_stands_for_go_first(template: str) -> None:
    made = ChatTemplate(TEMPLATES[template], {}).render([{"role": "user", "content": "Hi"}], 2)
    assert "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2 + "Hi" in made


def test_a_message_of_one_part_is_refused() -> None:
    for content in (IMAGE, {"type": "text", "text": "Hi"}):
        with pytest.raises(RowError, match="a string or a list of parts"):
            ChatTemplate(THINKING, {}).render([{"role": "user", "content": content}])
