"""Who people are. `gallery` is the way in.

`storage` keeps rows in SQLite or PostgreSQL; `search` finds the nearest; `open_set` says whether to believe
it; `recognition` decides for a run over cameras and boxes; `edits` are what people change; `erasure` forgets;
`backup` copies; `models` carries people over to a new model.
"""
