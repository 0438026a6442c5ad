"""Scoring samples: calling rewards, in a process with a deadline where asked, and what follows where one fails."""
