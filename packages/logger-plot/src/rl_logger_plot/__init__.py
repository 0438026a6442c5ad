"""A picture of reward, accuracy and loss in the run directory."""
