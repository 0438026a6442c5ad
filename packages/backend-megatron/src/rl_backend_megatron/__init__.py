"""Training backend on Megatron Core: tensor, pipeline, data and sequence parallelism."""
