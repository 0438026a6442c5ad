"""Metrics and traces for OpenTelemetry."""
