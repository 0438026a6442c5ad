"""How long the quickstart takes to 97 % on held-out questions, with this project and with TRL."""
