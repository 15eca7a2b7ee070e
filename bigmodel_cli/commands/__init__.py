"""The commands, a file each; what several of them share is in `shared` and `stdin`.

Nothing here imports torch, or a room that does, before a command runs.
"""
