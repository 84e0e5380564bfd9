"""The part of the program that runs on a GPU node: it trains LoRA trials and talks to a sweep through its room.

Invariant: nothing here imports `sweep`. `trainer.contract` and `trainer.room` need the standard library only,
because the controller imports them on machines without torch.
"""

# What each process that trains sets before torch is imported, unless it is set already: torchtune's tokenizer would
# cache files by path, so that a changed one went unnoticed; and trials of changing sizes would fragment a GPU's memory.
PROCESS_ENV = {"TIKTOKEN_CACHE_DIR": "", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
