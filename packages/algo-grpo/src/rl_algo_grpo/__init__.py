"""Group relative policy optimization and its relatives."""
