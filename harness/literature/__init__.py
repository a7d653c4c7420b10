"""What papers print: published numbers beside ours, whether they add up, and a paper's own tables.

In: results/published/*.csv, and records. Out: tables as text. May use records, certainty and
leaderboards; never imports torch.
"""
