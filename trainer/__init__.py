"""The part of the program that runs on a GPU node: it trains LoRA trials and talks to a sweep through its room.

Invariant: nothing here imports `sweep`. `trainer.contract` and `trainer.room` need the standard library only,
because the controller imports them on machines without torch.
"""
