"""One file a command: parse, call, show.

A command imports what it calls when it is called: `--help` needs none of it.
"""
