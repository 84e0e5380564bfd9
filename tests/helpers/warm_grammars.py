"""Has the parsers of Hydra and OmegaConf, and Hydra's plugins, do once what they keep for all later calls.

Import it before processes are forked: each of them would spend a third of a second on it.
"""

from __future__ import annotations

from sweep.wiring.compose import compose_config, freeze

freeze(compose_config(["experiment=demo"]), "warm")
