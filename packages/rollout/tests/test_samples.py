import numpy as np
from rl_core.batch import SequenceBatch
from rl_rollout.samples import to_samples


class Letters:
    """A tokenizer of single letters."""

    def encode_prompt(self, prompt):
        return np.array([ord(c) for c in prompt], np.int32)

    def decode(self, tokens):
        return "".join(chr(t) for t in tokens)


def test_samples_carry_their_row_and_their_text():
    batch = SequenceBatch.from_lists(
        [[97, 98, 99], [97, 100]],
        sequence_columns={
            "request": np.array([0, 0]),
            "prompt_length": np.array([1, 1]),
            "truncated": np.array([False, True]),
        },
    )
    first, second = to_samples(batch, [{"answer": "bc"}], Letters())
    assert (first.prompt, first.completion, first.completion_tokens, first.truncated) == ("a", "bc", 2, False)
    assert (second.completion, second.truncated, second.row) == ("d", True, {"answer": "bc"})
