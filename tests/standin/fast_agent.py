"""`wandb launch-agent` that polls every second and gives a job that never began five seconds, for tests that wait.

**Not the unmodified agent**: two of its module's constants are lowered, and nothing else. What must hold of the real
one is held against the real one, in `test_agents.py`.

    python -m tests.standin.fast_agent -q QUEUE -e ENTITY -j 2
"""

from __future__ import annotations

import sys


def main() -> None:
    import wandb.sdk.launch.agent.agent as module
    from wandb.cli.cli import cli

    for name, seconds in (("AGENT_POLLING_INTERVAL", 1), ("RUN_INFO_GRACE_PERIOD", 5)):
        assert hasattr(module, name)
        setattr(module, name, seconds)
    cli(["launch-agent", *sys.argv[1:]])


if __name__ == "__main__":
    main()
