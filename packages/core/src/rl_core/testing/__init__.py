"""The test kit for plugin authors; importing it needs pytest (``pip install "rl-core[testing]"``)."""
