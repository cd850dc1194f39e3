"""What developers and `run.py` run: the demo sweep, measuring, sizes of SD1.5 on random weights, thumbnails."""
