"""Search methods on the same learning curves: what each spends until a complete trial is within 1 % of the best.

python -m tests.bench.search run --out DIR --tables ../shared/data/curves/*.npz [--synthetic N] [--arms A,B] [--seeds
50]
    [--peer syne-tune=/path/to/python …]
python -m tests.bench.search show --out DIR [--docs docs/search]

`run` appends one JSON line a sweep to DIR/sweeps.jsonl and skips what is there, so it can be interrupted and joined by
other runs. `show` prints the table, and with --docs writes the tables and the plot that docs/search.md shows. Some of
the sweeps that it shows are in docs/search-sweeps: copy them into DIR and go on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.search_bench import arms, records, summary, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--tables", nargs="*", type=Path, default=[])
    run.add_argument("--synthetic", type=int, default=0, help="how many tables of the parametric family besides")
    run.add_argument("--arms", default="", help="comma-separated; all that can run by default")
    run.add_argument("--settings", default=",".join(arms.SETTINGS), help="workers: " + ", ".join(arms.SETTINGS))
    run.add_argument("--seeds", type=int, default=50)
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--limit", type=float, default=400.0, help="full-trial equivalents of a sweep")
    run.add_argument("--seconds", type=float, default=60.0, help="of a method's own time, for a sweep")
    run.add_argument("--peer", action="append", default=[], help="environment=interpreter")
    show = verbs.add_parser("show")
    show.add_argument("--docs", type=Path, default=None)
    for verb in (run, show):
        verb.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.verb == "show":
        summary.show(records.read(args.out), args.docs)
        return
    chosen = [tables.load(path) for path in args.tables] + [tables.synthetic(n) for n in range(args.synthetic)]
    interpreters = dict(item.split("=", 1) for item in args.peer)
    names = args.arms.split(",") if args.arms else arms.names(interpreters)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    plan = records.Plan(names, args.settings.split(","), seeds, args.limit, args.seconds)
    records.run(chosen, plan, interpreters, args.out)


if __name__ == "__main__":
    main()
