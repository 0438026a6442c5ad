"""Before a run: the backend that ``auto`` takes, memory, the plan, the config's schema, and ``rl doctor``."""
