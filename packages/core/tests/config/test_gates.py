import pytest
from rl_core.config.gates import gate_failure, parse_gate


def test_a_gate_holds_or_says_what_the_metric_is():
    assert gate_failure("eval/accuracy >= 0.9", {"eval/accuracy": 0.9}) is None
    assert gate_failure("eval/loss<2", {"eval/loss": 2.0}) == "eval/loss<2: it is 2"
    assert gate_failure("a > 1", {}) == "a > 1: the stage logged no metric 'a'"


@pytest.mark.parametrize("text", ["eval/accuracy", "eval/accuracy = 1", "a >= x", ">= 1"])
def test_what_is_not_a_condition_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a condition; write for example 'eval/accuracy >= 0\.9'$"):
        parse_gate(text)
