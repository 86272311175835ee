"""The model: tokenizer, base in 4 bits, adapter, answers. Takes the recipe's sections, never a whole recipe."""

import logging

# bitsandbytes 0.50 asks for the package `kernels` on import, for the CPU operator that `quantization` switches off, and
# says at every int8 product that its input is cast to float16. Neither is for the user to act on.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)
