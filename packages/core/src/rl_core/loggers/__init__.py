"""The loggers every installation has: the terminal, and JSON lines in the run directory."""
