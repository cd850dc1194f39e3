"""What is done before a run's first step: everything that it will need, and what is another since it began."""
