"""The part of the program that runs on a GPU node: it trains LoRA trials for a sweep, through the sweep's room.

Invariants: nothing in this package imports `sweep`. `trainer.contract` and `trainer.room` need the standard library
only, since the controller imports them on machines without torch.
"""

# Environment variables that every worker sets before it imports torch, unless they are set. Without the first,
# torchtune's tokenizer caches files by path, and misses that a file has changed. Without the second, trials of
# different sizes fragment a GPU's memory.
PROCESS_ENV = {"TIKTOKEN_CACHE_DIR": "", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
