"""A training step of one of many processes, on paper: what it keeps, adds, sends and waits for.

Nothing is allocated and no process is started. Parts are divided by their own plan (shares/), with
a team that counts what is exchanged; FSDP2's gathers are followed as it makes them.
"""
