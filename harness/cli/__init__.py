"""The command line: arguments, commands, and the plan as text.

In: argv. Out: printed text and an exit code. May use everything; nothing uses it.
"""
