"""The logger every installation has: JSON lines in the run directory."""
