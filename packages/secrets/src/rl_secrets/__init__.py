"""What is a secret, and keeping it out of everything that is printed or written: used from every floor."""
