"""A recipe's plan, made without torch: from the base's config, the adapter, the rows and this machine."""
