"""Supervised fine-tuning and reward models."""
