"""`rufus-serve verify`: whether what is served is still the model that was compiled.

Read in this order: `reference` (what is compared with), `comparison` (pure), `endpoint`, `served`.
"""
