"""The command line: one file a command, options in, one lazy call out.

Printing and asking happen here and nowhere below; what is computed belongs in the rooms below.
"""
