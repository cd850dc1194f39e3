"""Captions: a distinct one per frame (§4.1), from a vision-language model or another tool's file."""
