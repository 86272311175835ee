"""A conversation with a model: the turns of a person, and whoever answers them."""
