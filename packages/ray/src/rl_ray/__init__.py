"""A Ray of one user on this machine, and whether one elsewhere answers."""
