"""Rows of the data: in which order they are drawn, encoded as examples."""
