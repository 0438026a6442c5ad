"""The factor that keeps float16 gradients from vanishing."""

from __future__ import annotations

from rl_torch.engine.loss_scale import LossScale


def test_the_loss_scale_falls_on_overflows_and_rises_after_good_steps() -> None:
    scale = LossScale(value=4.0, growth_interval=2)
    assert scale.overflowed()
    assert scale.value == 2.0
    scale.stepped()
    scale.stepped()
    assert scale.value == 4.0
    scale.stepped()
    assert scale.overflowed()
    assert scale.good_steps == 0
    assert scale.overflowed()
    assert not scale.overflowed()  # as low as it gets: something else is wrong
    assert scale.value == 1.0
