"""Text data sources and tokenizers."""
