"""Hyperparameter search for LoRA fine-tuning: composes, proposes, dispatches, decides and reports.

Invariant: nothing here imports torch; of `trainer` only the contract and the room are used.
"""
