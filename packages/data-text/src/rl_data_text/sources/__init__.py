"""Data sources: one module per file format, on one shared pipeline (:mod:`.base`)."""
