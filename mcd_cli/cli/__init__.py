"""The command line: one file a command, options in, one lazy call out.

What a user types and sees is decided here; what is computed belongs in the rooms below. Nothing loads torch early.
"""
