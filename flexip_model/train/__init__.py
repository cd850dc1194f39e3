"""The trainer: `python -m flexip_model train CONFIG`, or `accelerate launch -m flexip_model.train CONFIG`."""
