"""The kit for authors of plugins: conformance suites, a tiny run, and the templates of ``rl plugin new``."""
