"""The recipe: its schema, its reader, and the catalogue of the libraries' own settings."""
