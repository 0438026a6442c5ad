"""Text to tokens and back: one module per way to obtain a tokenizer, on one shared core (:mod:`.base`)."""
