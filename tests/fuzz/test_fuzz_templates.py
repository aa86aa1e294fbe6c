"""Chat templates put together at random: refused, or an error of the row, never a traceback."""

from __future__ import annotations

import jinja2
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.errors import ConfigError, RowError
from vlmbatch.models.chat import ChatTemplate
from vlmbatch.models.template_sandbox import TemplateSandbox

FILTERS = sorted(TemplateSandbox().filters)
TESTS = sorted(jinja2.Environment().tests)
GLOBALS = sorted(TemplateSandbox().globals)
METHODS = sorted(
    name
    for kind in (str, list, dict, int, tuple, range)
    for name in dir(kind)
    if not name.startswith("__")
)

ATOMS = """messages messages[0] messages[0].content none true 1 -3 2.5 10**9 '' '%5s{0}<b>' []
    [1,'a'] {'a':1} (1,2) ns ns.x loop nothing range(9) self caller varargs"""
OPERATORS = "+ - * / // % ** ~ == < in and"
atoms = st.sampled_from([*ATOMS.split(), *GLOBALS])
expressions = st.recursive(
    atoms,
    lambda inner: (
        st.tuples(inner, st.sampled_from(FILTERS)).map(" | ".join)
        | st.builds("({}) | {}({})".format, inner, st.sampled_from(FILTERS), inner)
        | st.builds("({}) is {}".format, inner, st.sampled_from(TESTS))
        | st.builds("({}).{}".format, inner, st.sampled_from(METHODS))
        | st.builds("({}).{}({})".format, inner, st.sampled_from(METHODS), inner)
        | st.builds("({})[{}:{}]".format, inner, inner, inner)
        | st.builds(
            "({}) {} ({})".format,
            inner,
            st.sampled_from(OPERATORS.split()),
            inner,
        )
        | st.builds("[{}, {}]".format, inner, inner)
        | st.builds("dict(a={})".format, inner)
        | st.builds("({}) if ({}) else ({})".format, inner, inner, inner)
    ),
    max_leaves=6,
)
statements = st.recursive(
    expressions.map("{{{{ {} }}}}".format),
    lambda inner: (
        st.builds("{{% set ns.x = {} %}}{}".format, expressions, inner)
        | st.builds("{{% set y %}}{}{{% endset %}}{{{{ y }}}}".format, inner)
        | st.builds("{{% for a in {} %}}{}{{% endfor %}}".format, expressions, inner)
        | st.builds("{{% for a in {} recursive %}}{}{{% endfor %}}".format, expressions, inner)
        | st.builds("{{% if {} %}}{}{{% endif %}}".format, expressions, inner)
        | st.builds("{{% macro m(a) %}}{}{{% endmacro %}}{{{{ m(1) }}}}".format, inner)
        | st.builds("{{% call({}) m() %}}{}{{% endcall %}}".format, st.just("a"), inner)
        | st.builds("{{% block b %}}{}{{% endblock %}}{{{{ self.b() }}}}".format, inner)
        | st.builds("{{% filter {} %}}{}{{% endfilter %}}".format, st.sampled_from(FILTERS), inner)
        | st.builds("{{% {} {} %}}{}".format, st.sampled_from(["include", "extends"]), atoms, inner)
        | st.tuples(inner, inner).map("".join)
    ),
    max_leaves=4,
)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::hypothesis.errors.HypothesisWarning")
@examples(60)
@given(statements)
def test_any_template(source: str) -> None:
    head = "{% set ns = namespace(x=1) %}{% if messages[0].content == 'attack' %}"
    try:
        template = ChatTemplate(head + source + "{% endif %}{{ messages[0].content }}", {})
        template.render([{"role": "user", "content": "attack"}])
    except (ConfigError, RowError):
        return
