"""Scoring samples: rewards are called in processes with deadlines, and what follows where one fails."""
