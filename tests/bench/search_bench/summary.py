from __future__ import annotations
import numpy as np


def show(records, docs=None):
    g = {}
    for r in records:
        if "error" in r:
            print("ERR", r["arm"], r["setting"], r["error"][:100])
            continue
        g.setdefault((r["table"], r["setting"], r["arm"]), []).append(r)
    for (t, s, a), rs in sorted(g.items()):
        c = np.array([r["cost"] if r["found"] else np.inf for r in rs])
        w = np.array([r["time"] if r["found"] else np.inf for r in rs])
        print(
            f"{t:14s} {s:11s} {a:28s} n={len(rs):3d} cost {np.median(c):7.1f} time {np.median(w):7.2f} missed {int(np.isinf(c).sum()):2d} cut {sum(r['cut'] for r in rs)} ask ms {1e3 * sum(r['seconds'] for r in rs) / max(1, sum(r['trials'] for r in rs)):.1f}"
        )
