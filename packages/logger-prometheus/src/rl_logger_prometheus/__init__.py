"""A scrape endpoint for Prometheus, and a dashboard for Grafana."""
