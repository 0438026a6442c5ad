"""Whatever stands in a file or on the command line, the check answers with problems and never with an exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rl_core.config.yaml_rules import dump_yaml
from rl_core.preflight.check import check

SETTINGS = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORD_LIST = (
    "model run algorithm backend generator tokenizer data eval_data rewards evaluators loggers stages extends name "
    "path init steps clip imitate tiny sampler lines digits held remote hf letters api_key directory seed ${run.seed} "
    "${stages.a.export} ${env:HOME} ${ ${data} ${rewards.0} *** a"
)
WORDS = st.sampled_from(WORD_LIST.split(" "))
MARKS = st.sampled_from(
    [*"{}[]'\"\t\n#", ": ", "\n  ", "- ", ", ", "&x ", "*x", "<<: ", "!!int ", "|\n", "? ", "\\U", "%TAG "]
)
TEXT = st.lists(st.one_of(WORDS, MARKS, st.text(max_size=3)), max_size=40).map("".join)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=25,
)


@pytest.fixture
def answer(folder: Path, registry):
    """Whether a config is good; the check says so or names problems."""

    def answer(text: str, *overrides: str) -> bool:
        (folder / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        result = check("c.yaml", overrides, registry)
        assert (result.config is None) == bool(result.errors)
        assert all(str(problem) for problem in result.problems)
        return result.config is not None

    return answer


def test_arbitrary_text_never_raises(answer):
    met = set()

    @SETTINGS
    @given(text=TEXT, override=TEXT)
    def try_one(text, override):
        met.add(answer(text, override, f"run.steps={override}"))

    try_one()
    assert met == {False}


def test_arbitrary_documents_never_raise(answer, base):
    met = set()

    @SETTINGS
    @given(document=st.dictionaries(WORDS, VALUES, max_size=8), override=st.tuples(WORDS, WORDS, SCALARS))
    def try_one(document, override):
        met.add(answer(dump_yaml(document), f"{override[0]}.{override[1]}={override[2]}"))

    try_one()
    assert met == {False}


def test_a_good_config_with_one_arbitrary_value_never_raises(answer, base):
    met = {answer(base)}

    @SETTINGS
    @given(section=WORDS, key=WORDS, value=VALUES)
    def try_one(section, key, value):
        met.add(answer(base, f"{section}.{key}={dump_yaml(value)}"))

    try_one()
    assert met == {True, False}


def test_checking_imports_nothing_heavy():
    code = (
        "import sys, rl_core.preflight.check, rl_plan.run_plan, rl_plan.schema, rl_core.functions\n"
        "print([m for m in ('torch', 'transformers', 'ray', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
