"""Captions: each frame gets its own (§4.1), from a vision-language model or from another tool's file."""
