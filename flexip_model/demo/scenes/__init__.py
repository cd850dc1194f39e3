"""The small model's data: drawings, held-out subjects, backgrounds, prompts and the pictures made of them."""
