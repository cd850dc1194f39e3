"""What a person sees of a run while it trains: its log, previews, the validation loss."""
