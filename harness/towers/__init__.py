"""open_clip models as two frozen towers with sites where a method may step in.

In: a backbone's name. Out: a `Clip` whose towers call an edit at every site. Uses `randomness`,
`errors`; no other wing.
"""
