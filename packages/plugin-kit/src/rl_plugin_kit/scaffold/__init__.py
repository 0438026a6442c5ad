"""Writing new plugin packages (``rl plugin new``) from the templates in ``templates/``."""
