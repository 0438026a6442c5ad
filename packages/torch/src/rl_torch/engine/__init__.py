"""The one engine of all torch backends; a backend is a strategy for it (:mod:`rl_torch.engine.strategy`)."""
