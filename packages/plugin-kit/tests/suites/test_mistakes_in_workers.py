"""Each promise of a generator and of a backend, broken once: only its rule fails."""

from __future__ import annotations

import pytest


def is_message(found: str, expected: str) -> bool:
    """Whether they are the same; what follows a … are numbers of the moment."""
    start, cut, _ = expected.partition("…")
    return found.startswith(start) if cut else found == expected


GENERATOR = {
    "a column of another type": (
        {'"sample": k,': '"sample": k.astype(np.int32),'},
        "the batch has the columns of the contract",
        "the sequence column 'sample' is int32, expected int64",
    ),
    "trained prompts": (
        {
            "np.repeat(np.array([0, 1], np.float32), [len(prompt), len(completion.tokens)])": (
                "np.ones(len(prompt) + len(completion.tokens), np.float32)"
            )
        },
        "prompts are kept and completions are marked",
        "loss_mask of sequence 0 is [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]; it is 0 on the prompt and 1 on the "
        "completion",
    ),
    "one seed for all": (
        {"draws = uniforms(seed,": "draws = uniforms(7,"},
        "a sample depends on its request and seed alone",
        "two requests with the same prompt and different seeds give the same",
    ),
    "a seed that depends on the batch": (
        {"self._complete(prompt, int(seed) % 2**64,": "self._complete(prompt, (int(seed) + index) % 2**64,"},
        "a sample depends on its request and seed alone",
        "a request gives other completions alone than in a batch",
    ),
    "log-probs of another temperature": (
        {
            "completion.logprobs.append(logprob)": (
                "completion.logprobs.append(logprob * (sampling.temperature if sampling.temperature > 1 else 1))"
            )
        },
        "log probs are those of the model over the full vocabulary",
        "sampled_logprobs with top_k=0, top_p=1 differ from the model's at temperature 1.4 by up to …",
    ),
    "chance at temperature 0": (
        {
            "tokens, logprobs = sample(answer.logits[:, -1], draws[step], sampling)": (
                "hot = sampling if sampling.temperature else type(sampling)()\n"
                "            tokens, logprobs = sample(answer.logits[:, -1], draws[step], hot)"
            )
        },
        "temperature 0 takes the most likely token",
        "at temperature 0 request 0 is completed with …",
    ),
    "always cut off": (
        {
            "[not one.ended for completions in sampled for one in completions], bool)": (
                "[True for completions in sampled for one in completions], bool)"
            )
        },
        "completions end with a stop token or at their limit",
        "sequence 0 ends with a stop token and truncated is True",
    ),
    "a version that stays": (
        {"        self._version = version\n": "        self._version = self._version or version\n"},
        "new weights take effect with their version",
        "after update_weights(version=8) weights_version is [7]",
    ),
    "weights that are not its own": (
        {
            "            load_buckets_into(model, buckets)\n": (
                "            load_buckets_into(model, buckets)\n"
                "            start = 0\n"
                "            for name, shape in zip(buckets[0].names, buckets[0].shapes, strict=True):\n"
                "                stop = start + 4 * torch.Size(shape).numel()\n"
                "                kept = torch.from_numpy(buckets[0].data[start:stop]).view(torch.float32)\n"
                "                model.get_parameter(name).data = kept.view(shape)\n"
                "                start = stop\n"
            )
        },
        "new weights are copied",
        "completions change with the memory of the buckets that update_weights was given, which is used again",
    ),
    "weights that do not fit": (
        {
            "            load_buckets_into(model, buckets)\n": (
                "            try:\n                load_buckets_into(model, buckets)\n"
                "            except ValueError:\n                return\n"
            )
        },
        "weights that do not fit are refused by name",
        "update_weights accepts a name that the model has not: model.unheard_of.weight",
    ),
    "a refusal without a name": (
        {
            "            load_buckets_into(model, buckets)\n": (
                "            try:\n                load_buckets_into(model, buckets)\n"
                "            except ValueError:\n                raise ValueError('bad weights') from None\n"
            )
        },
        "weights that do not fit are refused by name",
        "update_weights refuses model.unheard_of.weight without naming it: bad weights",
    ),
    "dreams": (
        {
            "        if self._model is not None:\n            self._model.to(self._device)": (
                "        self._seed_shift = 1"
            ),
            "self._complete(prompt, int(seed) % 2**64,": (
                "self._complete(prompt, (int(seed) + getattr(self, '_seed_shift', 0)) % 2**64,"
            ),
        },
        "sleeping and waking change nothing",
        "after sleep and wake the same weights give other completions",
    ),
}


@pytest.mark.parametrize("mistake", GENERATOR)
def test_a_generator(mistake, findings):
    changes, rule, message = GENERATOR[mistake]
    found = findings("generator", changes)
    assert list(found) == [rule]
    assert is_message(found[rule], f"generator 'my-first': {message}")


SAVE = "        torch.save(state, Path(directory) / STATE_FILE)"
BACKEND = {
    "a wrong count": (
        {"parameters=sum(parameter.numel() for parameter in built.parameters()),": "parameters=1,"},
        "loading reports the model",
        "load reports 1 parameters, and weights streams 16672",
    ),
    "the temperature forgotten": (
        {
            "computed = compute_outputs(loaded.model, micro, outputs, temperature=temperature)": (
                "computed = compute_outputs(loaded.model, micro, outputs, temperature=1.0)"
            )
        },
        "log probs are those of the model",
        "logprobs at temperature 0.7 differ from the model's by up to …",
    ),
    "a score per token": (
        {
            'np.zeros(len(shard) if n == "scores" else len(shard.tokens), np.float32)': (
                "np.zeros(len(shard.tokens), np.float32)"
            ),
            'values[part if name == "scores" else shard.token_index(part)] =': (
                'values[part if name == "scores" else shard.token_index(part)] ='
            ),
        },
        "a scalar head gives a value per token and a score per sequence",
        "scores have shape (29,), expected (4,)",
    ),
    "a learning rate of its own": (
        {'"learning_rate": rate}, finite)': '"learning_rate": 2 * rate}, finite)'},
        "training lowers the loss and reports it",
        "train reports the learning rate 0.02, not 0.01",
    ),
    "a norm after clipping": (
        {'{"grad_norm": float(norm),': '{"grad_norm": min(float(norm), 0.1),'},
        "the scale divides the loss and its gradient",
        "with scale.tokens doubled grad_norm is 0.1, not half of 0.1: nothing but the loss may divide",
    ),
    "a mean over micro-batches": (
        {"value.backward()": "(value / len(list(self._micro_batches(shard)))).backward()"},
        "micro batches do not change the results",
        "grad_norm is …",
    ),
    "an evaluation that trains": (
        {
            "        metrics = self._losses(self._role(role), shard, loss, scale)\n": (
                "        metrics = self._losses(self._role(role), shard, loss, scale)\n"
                "        next(self._role(role).model.parameters()).data.mul_(1.5)\n"
            )
        },
        "evaluating gives the loss and changes nothing",
        "evaluate changed the weights",
    ),
    "a step on nan": (
        {"        if finite:\n": "        if True:\n"},
        "a loss that is not finite takes no step",
        "a loss of nan changed the weights",
    ),
    "nan called finite": (
        {"rate}, finite)": "rate}, True)"},
        "a loss that is not finite takes no step",
        "a loss of nan is reported as finite",
    ),
    "an empty shard": (
        {
            "        metrics = self._losses(loaded, shard, loss, scale)\n": (
                "        metrics = self._losses(loaded, shard, loss, scale)\n"
                "        next(loaded.model.parameters()).data.add_(0.25 * (not len(shard)))\n"
            )
        },
        "an empty shard is fine",
        "training on an empty shard moved a weight by 0.25",
    ),
    "an optimizer that is not restored": (
        {'            loaded.optimizer.load_state_dict(state["optimizer"])\n': "            pass\n"},
        "a restored training continues to the last bit",
        "the losses after restore are …",
    ),
    "a checkpoint of later": (
        {
            SAVE: "        self._late = (state, Path(directory) / STATE_FILE)",
            '        """Nothing is written in the background."""\n': "        torch.save(*self._late)\n",
        },
        "what is saved is the state of that moment",
        "training after save changed what restore reads",
    ),
    "an export of something else": (
        {
            "        self._role(role).model.model.save_pretrained(directory)\n": (
                "        model = self._role(role).model.model\n"
                "        model.get_input_embeddings().weight.data.add_(1)\n"
                "        model.save_pretrained(directory)\n"
            )
        },
        "the export holds the weights that are streamed",
        "export and weights differ in model.embed_tokens.weight",
    ),
    "sleep that forgets": (
        {
            '        """Leave the GPU to a generator."""\n': (
                '        next(self._roles["policy"].model.parameters()).data.zero_()\n'
            )
        },
        "sleeping and waking change nothing",
        "sleep and wake changed the weights",
    ),
    "closed for good": (
        {
            "        self._roles.clear()\n": "        self._roles.clear()\n        self.close = None\n",
            "        if context.world_size != 1:\n": (
                "        if self.close is None:\n            raise RuntimeError('closed already')\n"
                "        if context.world_size != 1:\n"
            ),
        },
        "a closed backend can be set up again",
        "RuntimeError: closed already (backend.py:…",
    ),
}


@pytest.mark.parametrize("mistake", BACKEND)
def test_a_backend(mistake, findings):
    changes, rule, message = BACKEND[mistake]
    found = findings("backend", changes)
    assert list(found) == [rule]
    assert is_message(found[rule], message if message.startswith("Runtime") else f"backend 'my-first': {message}")
