"""Metrics, samples and artifacts for MLflow."""
