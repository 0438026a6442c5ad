"""Generator on vLLM engines, updated in place between training steps."""
