"""The model: tokenizer, base in 4 bits, adapter, answers. Takes the recipe's sections, never a whole recipe."""
