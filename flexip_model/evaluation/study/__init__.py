"""The paper's user study as a kit: a page for blind choices between methods, and its answers to Table 1's columns."""
