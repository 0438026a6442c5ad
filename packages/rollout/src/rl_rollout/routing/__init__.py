"""How single requests reach the generator replicas, and their completions come back."""
