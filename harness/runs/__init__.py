"""From a request to runs, and from a run to its record.

In: names and settings. Out: `Record`s with predictions and weights, by `execute(run, context)`.
Uses every wing but `bench` and `cli`.
"""
