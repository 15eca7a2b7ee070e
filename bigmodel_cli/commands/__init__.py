"""The commands by group; what several of them share is in `shared`.

Nothing here imports torch, or a room that does, before a command runs.
"""
