"""Files and folders that a run writes."""
