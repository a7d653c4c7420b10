"""What is shown of records: leaderboards, costs, metrics beside top-1, and mistakes.

In: records, and how sure they are. Out: tables as text, pictures as SVG. May use records and
certainty; never imports torch.
"""
