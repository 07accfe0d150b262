"""From a manifest row to a committed, scored rendering: reading, planning, committing and reporting. No cluster."""
