"""Processor, memory, disk, network and GPUs of every machine of a run."""
