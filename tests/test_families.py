"""Every causal family of transformers, from loading to export, as docs/models.md says; ten of them in the suite."""

from __future__ import annotations

import importlib.util
import logging

import families
import models_page
import pytest
from family_sweep import sweep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

IN_SUITE = (
    "bloom",  # no positions to give it, so padded
    "deepseek_v3",  # latent attention, fused experts, dense layers first
    "gemma2",  # caps scores and logits, windows
    "glm4_moe",
    "gpt2",  # weights the other way round
    "gpt_oss",  # sinks
    "qwen3_next",  # most layers without attention
    "opt",  # dropout under other names
    "phi3",
    "qwen3_moe",
)
MUST = (
    *("llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "mistral", "mixtral", "gemma2", "gemma3", "gemma3_text"),
    *("phi3", "deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "gpt_oss", "olmo", "olmo2", "olmo3", "smollm3"),
)
RESULTS = models_page.read()


@pytest.fixture(autouse=True)
def quiet():
    """Transformers and the generator warn about some families."""
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.mark.parametrize("name", IN_SUITE)
def test_a_family_does_what_the_page_says(name):
    assert sweep(name) == RESULTS["families"][name]


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(set(families.FAMILIES) - set(IN_SUITE)))
def test_a_family_does_what_the_page_says_in_the_nightly_run(name):
    built = name == "gemma3n" and importlib.util.find_spec("timm")
    assert sweep(name) == RESULTS["families"]["gemma3n_text" if built else name]


def test_the_page_is_made_from_the_results():
    assert models_page.PAGE.read_text() == models_page.page(RESULTS), "run `hatch run models`"


def test_every_causal_family_has_a_result():
    assert set(RESULTS["families"]) == set(families.FAMILIES)
    assert {*families.FAMILIES, *families.ENCODERS} == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def test_a_family_is_refused_only_for_what_transformers_does():
    refused = {name for name, found in RESULTS["families"].items() if found["load"] != "ok"}
    assert refused == set(families.REFUSED) == set(RESULTS["refused"])


@pytest.mark.parametrize("name", MUST)
def test_a_family_that_people_train_is_trained_adapted_sampled_from_and_exported(name):
    found = RESULTS["families"][name]
    assert {found[stage] for stage in ("load", "auto", "sharded", "gradient", "generate", "adapter", "export")} == {
        "ok"
    }


def test_no_family_computes_something_else_than_transformers():
    found = {(n, s) for n, f in RESULTS["families"].items() for s, what in f.items() if what.startswith("wrong")}
    assert found == set()
