"""Ways to spread the runs of a plan over processes.

In: a plan and a results folder. Out: the records of all its runs. Uses `runs` and `records`.
"""
