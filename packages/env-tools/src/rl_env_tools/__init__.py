"""Environments: tools that the model may call, and a Python class of the user's own."""
