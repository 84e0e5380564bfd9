"""The names of the attributes that this program gives a study and its trials.

Invariant: studies hold these names, so none changes.
"""

# User attribute of a study: the token of the room that it was created for.
ROOM = "room"
# User attributes of a trial.
IMPORTED = "imported_from"
REASON = "reason"
CANCELLED = "cancelled"
UNBUILDABLE = "unbuildable"
TOKENS = "tokens"
SECONDS = "seconds"
FINAL = "final"
PROMOTED = "promoted_at"
STOPPED = "stopped"
