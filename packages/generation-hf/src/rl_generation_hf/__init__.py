"""Embedded generator on Hugging Face models; runs anywhere."""
