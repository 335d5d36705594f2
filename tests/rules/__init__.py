"""The rules of the house, as checks that tests/test_layers.py and tests/test_tidy.py run.

`layers` holds the tables, `python_imports` and `cpp_includes` compare the tree with them; `names`,
`headers`, `docs` and `prose` look at what is written. `exceptions` lists what breaks a rule today.
A check takes a root folder and returns lines of `path:line: what`, so that it can be tried on a
made-up tree.
"""
