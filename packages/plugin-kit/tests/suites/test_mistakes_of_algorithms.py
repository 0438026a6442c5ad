"""Each promise of an algorithm and of a tokenizer, broken once: only its rule fails."""

from __future__ import annotations

import pytest
from rl_plugin_kit.outcome import outcomes
from rl_plugin_kit.suites import TokenizerConformance

STEP = '        return mean_metrics([models["policy"].train(batch, loss)])\n'
METRICS = '        metrics = mean_metrics([models["policy"].train(batch, loss)])\n'
ALGORITHM = {
    "an optimizer for another length": (
        STEP + "\n    def optimizer(self, role, total_steps):\n        return self.config.optimizer.spec(1e-3, 7)\n",
        "its roles can be built",
        "optimizer('policy', 10) is for 7 steps: OptimizerSpec(learning_rate=0.001, schedule='constant', "
        "warmup_steps=0, total_steps=7, min_lr_ratio=0.0, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, "
        "max_grad_norm=1.0)",
    ),
    "another plan": (
        STEP + "\n    def plan(self):\n        from dataclasses import replace\n\n"
        "        return replace(self.config.plan(), group_size=4)\n",
        "its plan is that of its config",
        "plan() is BatchPlan(input='rollouts', rows_per_step=16, group_size=4, optimizer_steps=1, "
        "max_resample_rounds=0, notes=()), and that of the config, which `rl check` shows, is "
        "BatchPlan(input='rollouts', rows_per_step=16, group_size=8, optimizer_steps=1, "
        "max_resample_rounds=0, notes=())",
    ),
    "a metric that is no number": (
        METRICS + "        return metrics | {'policy/odd': float('nan')}\n",
        "a step trains and returns finite metrics",
        "step returned nan for the metric 'policy/odd', not a finite number",
    ),
    "a metric without a section": (
        METRICS + "        return metrics | {'odd': 1.0}\n",
        "a step trains and returns finite metrics",
        "step returned a metric named 'odd'; names have a section, e.g. 'train/loss'",
    ),
    "no loss": (
        METRICS + "        return {'train/grad_norm': metrics['train/grad_norm']}\n",
        "a step trains and returns finite metrics",
        "step returned no train/loss: train/grad_norm",
    ),
    "nothing trained": (
        '        return mean_metrics([models["policy"].evaluate(batch, loss)])\n',
        "a step trains and returns finite metrics",
        "step left the weights of its first trainable role as they were",
    ),
    "a state that is forgotten": (
        METRICS + "        self.steps = getattr(self, 'steps', 0) + 1\n"
        "        return metrics | {'policy/steps': float(self.steps)}\n",
        "a resumed training takes the same steps",
        "after a resume the next step returns another policy/steps (1.0, not 2.0); see state()",
    ),
    # With the same batch again, a mean that starts from the first batch is what it was.
    "running statistics that are forgotten": (
        METRICS + "        mean = float(batch.sequence_columns['reward'].mean())\n"
        "        self.mean = 0.9 * getattr(self, 'mean', mean) + 0.1 * mean\n"
        "        return metrics | {'policy/baseline': self.mean}\n",
        "a resumed training takes the same steps",
        "after a resume the next step returns another policy/baseline (0.28125, not 0.5343749999999999); see state()",
    ),
    "a state under the name that PyTorch has for it": (
        STEP + "\n    def state_dict(self):\n        return {}\n",
        "no method has almost the name of one that is called",
        "MyFirstAlgorithm.state_dict is never called, state would be; rename it, or begin it with _",
    ),
    "a state that is no JSON": (
        STEP + "\n    def state(self):\n        return {'seen': {1, 2}}\n",
        "a resumed training takes the same steps",
        "state() cannot be written as JSON: Object of type set is not JSON serializable",
    ),
}


@pytest.mark.parametrize("mistake", ALGORITHM)
def test_an_algorithm(mistake, findings):
    code, rule, message = ALGORITHM[mistake]
    assert findings("algorithm", {STEP: code}, also=("backend",)) == {rule: f"algorithm 'my-first': {message}"}


def test_an_algorithm_that_splits_groups(findings):
    keep = "\n    def keep(self, batch):\n        return batch.sequence_columns['sample'] > 0\n"
    plan = (
        "\n    def plan(self):\n        from dataclasses import replace\n\n"
        "        return replace(self.config.plan(), max_resample_rounds=2)\n"
    )
    assert findings("algorithm", {STEP: STEP + keep + plan}, also=("backend",))["it keeps whole groups"] == (
        "algorithm 'my-first': keep takes part of group [0]; it decides on whole groups"
    )


PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_tokenizers():
    return [Component("tokenizer", "mine", "rl_x_tok.mine:Mine", "rl_x_tok.config:Config", "Letters")]
"""
CONFIG = """
from rl_core.config.sections import ComponentConfig

class Config(ComponentConfig):
    pass
"""
MINE = """
import numpy as np
from rl_plugin_kit.letters import LetterTokenizer

class Mine(LetterTokenizer):
    def __init__(self, config):
        self.config = config
"""
TOKENIZER = {
    "": ("", None, ""),
    "ids of another type": (
        "def encode_prompt(self, prompt):\n    return super().encode_prompt(prompt).astype(np.int64)",
        "ids are within the vocabulary",
        "encode_prompt returned int64, expected an int32 array [T]",
    ),
    "ids outside the vocabulary": (
        "vocab_size = 12",
        "ids are within the vocabulary",
        "encode_prompt returned [12], outside the vocabulary of 12",
    ),
    "an end that is not learned": (
        "def encode_example(self, row, loss_on):\n    tokens, mask = super().encode_example(row, loss_on)\n"
        "    return tokens[:-1], mask[:-1]",
        "the completion is trained on with its end",
        "the example [2, 12, 3, 13, 3] with loss_mask [0.0, 0.0, 0.0, 0.0, 1.0] does not end with a trained "
        "end-of-sequence token (1)",
    ),
    "a beginning that sampling does not see": (
        "def encode_example(self, row, loss_on):\n    tokens, mask = super().encode_example(row, loss_on)\n"
        "    return np.append(np.int32([0]), tokens), np.append(np.float32([0]), mask)",
        "an example begins with its prompt as it is sampled from",
        "the example of prompt '0+1=' begins with [0, 2, 12, 3], loss_mask [0.0, 0.0, 0.0, 0.0]; "
        "encode_prompt gives [2, 12, 3, 13], not trained on",
    ),
    "loss_on ignored": (
        "def encode_example(self, row, loss_on):\n    return super().encode_example(row, 'completion')",
        "all tokens can be trained on",
        "with loss_on 'all' the loss_mask is [0.0, 0.0, 0.0, 0.0, 1.0, 1.0]; it covers the prompt, too",
    ),
    "special tokens in the text": (
        "def decode(self, tokens):\n    return super().decode(tokens) + '_' * sum(int(t) == 0 for t in tokens)",
        "decoding leaves special tokens out",
        "decode of the special tokens [0, 1] is '_', not empty",
    ),
    "nothing saved": (
        "def save(self, directory):\n    pass",
        "what it saves is a tokenizer folder",
        "save writes nothing, no tokenizer_config.json",
    ),
}


@pytest.mark.parametrize("mistake", TOKENIZER)
def test_a_tokenizer(mistake, install):
    method, rule, message = TOKENIZER[mistake]
    own = MINE + "\n" + "".join(f"    {line}\n" for line in method.splitlines())
    install("rl-x-tok", PLUGIN, files={"config.py": CONFIG, "mine.py": own})
    suite = type("Suite", (TokenizerConformance,), {"component": "mine"})
    ray = ("test_a_ray_worker_receives_its_config_and_builds_it", "test_a_tiny_run_continues_exactly_where_it_stopped")
    found = {one.rule: one.detail for one in outcomes(suite, without=ray) if one.status != "ok"}
    assert found == ({rule: f"tokenizer 'mine': {message}"} if rule else {})
