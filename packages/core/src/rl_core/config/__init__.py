"""One YAML file → one validated, frozen config, composed from the selected plugins' models."""
