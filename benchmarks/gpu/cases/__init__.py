"""All cases: importing a module registers what is in it, in this order.

What is compared comes first; then what is measured; what may take long and is rarely used is last.
"""

from gpu.cases import losses, models, training, rollouts, states, transports, speed, liger, compiled  # noqa: F401, I001
