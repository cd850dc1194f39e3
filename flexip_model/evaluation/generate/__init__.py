"""A method's pictures of a benchmark, drawn through the diffusers host: FlexIP, an imported IP-Adapter, the base."""
