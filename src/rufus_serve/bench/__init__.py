"""`rufus-serve bench`: load on any OpenAI endpoint, and what its streams were like.

Read in this order: `workload` (what is asked), `arrivals` (when), `stream` (one request),
`runner` (all of them), `summary` (percentiles), `report` (files).
"""
