"""A hostile template ends soon and small, with an error of its row; others are untouched."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models import template_limits
from vlmbatch.models.chat import ChatTemplate

SPEAK = "{{ messages[0].content }}"


def attack(source: str) -> str:
    """What the template says to the one message that sets ``source`` off; its peace otherwise."""
    text = "{% if messages[0].content == 'attack' %}" + source + "{% endif %}" + SPEAK
    template = ChatTemplate(text, {})
    assert template.render([{"role": "user", "content": "peace"}]) == "peace"
    return template.render([{"role": "user", "content": "attack"}])


def grow(start: str, step: str, then: str = "") -> str:
    """Sixty doublings of ``ns.x``."""
    return (
        "{% set ns = namespace(x=" + start + ") %}"
        "{% for i in range(60) %}{% set ns.x = " + step + " %}{% endfor %}" + then
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x'.center(10**9) }}",
        "{{ 'x' | center(1000000000) }}",
        "{% filter center(1000000000) %}x{% endfilter %}",
        "{% set x | center(1000000000) %}x{% endset %}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=1000000000) }}",
        "{{ '\\t'.expandtabs(1000000000) }}",
        "{{ (5).to_bytes(1000000000, 'big') }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ range(3) | slice(1000000000) | list }}",
        "{{ range(3) | batch(1000000000, 'x') | list }}",
        "{{ 1.5 | round(1000000000, 'ceil') }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000).join(range(9999) | map('string')) }}",
        "{{ range(9999) | map('string') | join('x' * 1000000) }}",
        "{{ range(99999) | map('center', 1000000) | list }}",
        "{{ [[[[1] * 999] * 999] * 999] * 999 }}",
        "{% set x %}{% for i in range(99999) %}" + "y" * 20_000 + "{% endfor %}{% endset %}",
        "{{ ('x' | safe).center(10**9) }}",
        "{{ ('x' | escape).ljust(10**9) }}",
        "{{ ('é' * 1000000).encode('ascii', 'namereplace') }}",
        "{{ strftime_now('x' * 4000000 ~ '%900000000Y') }}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ],
)
def test_size_is_bounded(source: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RowError) as caught:
            attack(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code is ErrorCode.PROMPT_INVALID
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    "source",
    [
        grow("'ab'", "ns.x ~ ns.x"),
        grow("'ab'", "ns.x + ns.x"),
        grow("'ab'", "ns.x.join(['', '', ''])"),
        grow("[1]", "ns.x + ns.x"),
        grow("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
        grow("(1,)", "(ns.x, ns.x)", "{{ ns.x == ns.x }}"),
        grow("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
        grow("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x | string }}"),
        grow("3", "ns.x * ns.x"),
    ],
)
def test_growth_is_bounded(source: str) -> None:
    with pytest.raises(RowError, match=r"makes more than|number of more than"):
        attack(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('a' * 1000000) | wordwrap(1) }}",
        "{{ ('a' * 4000000) | wordwrap(1, true, '') }}",
        "{{ ('a ' * 2000000) | urlize }}",
        "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
        "{{ ('a' * 1000000).lstrip('b' * 1000000 ~ 'a') }}",
        "{{ ('a' * 1000000) | trim('b' * 1000000 ~ 'a') }}",
        "{{ ('a' * 4000000).rfind('ab' ~ 'a' * 2000000) }}",
        "{{ ('a' * 4000000).rindex('ab' ~ 'a' * 2000000) }}",
        "{{ ('a' * 4000000).rsplit('ab' ~ 'a' * 2000000) }}",
        "{{ ('a' * 4000000).rpartition('ab' ~ 'a' * 2000000) }}",
        "{{ ('a' * 4000000).encode().rfind(('ab' ~ 'a' * 2000000).encode()) }}",
        "{{ ([[]] * 150000) | sum(start=[0] * 50000) }}",
        "{{ ([[1]] * 99999) | sum('x', []) }}",
        "{{ ('f' * 4000000) | int(0, 16) % 7 }}",
        "{{ ('f' * 4000000) | int(0, 16) // (('e' * 2000000) | int(0, 16)) }}",
        "{{ ('a@' * 2000000) | groupby('a') }}",
        "{{ ('ba' * 2000000) | sort }}",
        "{{ ('ba' * 2000000) | list }}",
        "{{ ('é' * 400000).encode('idna') }}",
        "{{ ('é' * 400000).encode(encoding='punycode') }}",
        "{{ ('xn--a-' * 400000).encode().decode('Puny_Code') }}",
    ],
)
def test_no_operation_takes_long(source: str) -> None:
    """Each of them is one that nothing could stop once it has begun: they are not begun."""
    with pytest.raises(RowError, match=r"makes more than|number of more than|encoding"):
        attack(source)


def test_operations_on_long_texts_that_are_quick() -> None:
    text = "It is so, <b>and</b> not otherwise. " * 10_000  # more than a context holds
    source = (
        "{% set t = messages[0].content %}{{ t.strip() | trim | length }} {{ t.split('</b>')[-1] }}"
        "{{ t.rsplit('</b>', 1)[-1] }}{{ t.lstrip('\\n') | replace('x', 'y') | length }}"
        "{{ t.rfind('</think>') }}{{ t.encode('utf-8').decode('UTF-8') | length }}"
        "{{ ([[1], [2]] * 500) | sum(start=[]) | length }}"
        "{{ [1, 2] | sum }}{{ strftime_now('%d %b %Y') | length }}"
    )
    rendered = ChatTemplate(source + SPEAK, {}).render([{"role": "user", "content": text}])
    assert rendered.startswith("359999  not otherwise.") and rendered.endswith(text)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(999) | list %}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(50) }}",
        "{% set x = 'y' * 4000000 %}{% for i in range(99999) %}{{ 'z' in x }}{% endfor %}",
    ],
)
def test_time_is_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.05)
    with pytest.raises(RowError, match=r"takes longer than 0\.05 seconds|characters in all"):
        attack(source)


@pytest.mark.parametrize(
    "source",
    [
        "(" * 5000 + ")" * 5000,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "1 + " * 20_000 + "1 }}",
        "{% if a %}" * 300 + "{% endif %}" * 300,
        "{% for a in b %}" * 30 + "{% endfor %}" * 30,
        SPEAK + "x" * 2**20,
    ],
)
def test_sources_that_cannot_be_compiled(source: str) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate(source, {})


PUBLISHED = """
{%- set ns = namespace(count=0, text='') -%}
{%- for message in messages -%}
  {%- set ns.count = ns.count + 1 -%}
  {%- for part in message.content | selectattr('type', 'equalto', 'text') -%}
    {%- set ns.text = ns.text ~ loop.index ~ '/' ~ loop.length ~ (part.text | trim) -%}
  {%- endfor -%}
  {%- if not loop.last %}{% continue %}{% endif -%}
  {{ '%s-%03d' % ('a', 7) }} {{ '{:>4}|'.format('b') }} {{ [1, ns.count] + [3] }}
  {{ (1, 2)[::-1] }} {{ 'a,b'.split(',') | join('+') }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 'ab' * 2 }}
  {{ {'k': [ns.text]} | string }} {{ ['b', 'a'] | sort | map('upper') | list }}
  {{ 'x' | center(5) }} {{ [3, 1] | reverse | list }} {{ message.get('name', 'none') }}
  {{ message.items() | list | length }} {{ message.content | tojson | length }} {{ undefined }}
{%- endfor -%}
{%- macro twice(text) %}{{ text }}{{ text }}{% endmacro %}{{ twice('ab') | upper }}
{%- for x, y in [(1, [2]), (3, [])] recursive %}{{ x }}{{ loop.last }}{% endfor -%}
"""


def test_what_templates_do_is_otherwise_jinjas() -> None:
    content = [{"type": "text", "text": " Hi "}, {"type": "image"}, {"type": "text", "text": "Ho"}]
    messages = [{"role": "user", "content": content}] * 2
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    jinja.filters["tojson"] = json.dumps
    source = PUBLISHED + "{{ messages[0].content[0].text }}"
    expected = jinja.from_string(source).render(messages=messages)
    assert "1/2Hi2/2Ho1/2Hi2/2Ho" in expected
    assert ChatTemplate(source, {}).render(messages) == expected
