"""Rule-based rewards: exact match, regular expressions, numbers, your own function."""
