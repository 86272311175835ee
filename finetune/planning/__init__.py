"""What a plan is made from, found without torch: the base's config, the adapter, the rows, this machine."""
