"""Who decodes images: processes that may crash or hang at the cost of one row."""
