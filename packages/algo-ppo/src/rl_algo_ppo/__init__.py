"""Proximal policy optimization with a value model."""
