"""The small model that ships with the pack: its data, its training and its export.

Nothing here is needed to run the nodes. One command makes `models/demo` again from public packages:
`python -m flexip_model demo-model make` (see `cli.py`); every stage can also be run on its own.
"""
