"""The engine against the arithmetic of the published training loops: time, operations, memory.

In: methods and a backbone. Out: tables and JSON. Uses `runs` and what `runs` uses.
"""
