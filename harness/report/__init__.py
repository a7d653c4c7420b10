"""The report: records to one HTML file that opens offline.

In come records; out goes text. `content` makes plain data of them, raw fractions and counts;
`geometry` says where things stand in a picture; `page` fills the template. Pictures of images come
from the caller. May use records, certainty, leaderboards; never imports torch.
"""
