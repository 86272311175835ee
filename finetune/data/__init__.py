"""Rows to examples to tokens: formats, sources, templates, batches."""
