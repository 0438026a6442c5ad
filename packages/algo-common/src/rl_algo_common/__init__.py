"""What algorithms share: configs, losses, advantages, the KL, rows as sequences."""
