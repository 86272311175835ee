"""QLoRA fine-tuning: one recipe, from rows to an adapter you can talk to. `python -m finetune` lists the verbs."""

import logging

__version__ = "0.1.0"

__all__ = ["__version__"]

# bitsandbytes 0.50 asks for the package `kernels` when it is imported, for the CPU operator that `model.quantization`
# switches off, and says at every int8 product that its input is cast to float16. torchao, which comes with Unsloth and
# which trl imports where it is there, misses a GPU's compiler and registers enums in a way that torch 2.13 deprecates.
# None of it is for the user to act on, and whichever library imports these first, they have to be quiet by then.
for _name in (
    "bitsandbytes.backends.cpu.ops",
    "bitsandbytes.autograd._functions",
    "torch.utils._pytree",
    "torchao",
):
    logging.getLogger(_name).setLevel(logging.ERROR)
