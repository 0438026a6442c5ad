"""Pages of the documentation site that are made from the code, and the mkdocs hook that adds them."""
