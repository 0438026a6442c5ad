"""Ray: starting it, placing workers, and calling them."""
