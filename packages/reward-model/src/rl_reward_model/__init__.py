"""A trained reward model as a reward, served by its own workers."""
