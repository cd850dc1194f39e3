"""What a method is asked for: subjects with their reference pictures, and the prompts of each."""
