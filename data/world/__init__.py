"""The tiny world: facts, and the texts and data sets made of them. `python -m data.world` writes them all."""
