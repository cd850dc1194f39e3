"""Looking inside (Fig. 7): which places of a picture attend to which tokens, and which patches of a reference the
resamplers read. The hosts hand over what their attention computes with; nothing here changes a picture."""
