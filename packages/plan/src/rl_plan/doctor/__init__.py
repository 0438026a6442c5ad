"""``rl doctor``: is this machine, and this installation, able to train."""
